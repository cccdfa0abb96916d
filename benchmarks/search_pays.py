"""Whether a search pays: TPE and random search at equal budget, their best against the default.

    python -m benchmarks.search_pays [--minutes 6] [--out benchmarks/results/search_pays.json]

Needs what `make retrain` has made: data/base_model, data/policy, data/validated, data/reward_model.
Every trial goes on from that policy, so that few conversations suffice, and is scored on the
validation part; the best of each study and the default are then trained as in the search and
compared on the held-out intents, which no trial was scored on. After each trial and each comparison
the file is written, and the same command goes on from it, so it may be cut off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from stateset_agents import run_config
from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.data.readers import read_scenarios
from stateset_agents.data.scenario_set import make_environment
from stateset_agents.evaluation.compare import compare
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.results import PolicyResult
from stateset_agents.evaluation.run import Candidate, play, select_scenarios
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.merging import merge_adapter
from stateset_agents.training.hpo.config import HPOConfig, SamplerName
from stateset_agents.training.hpo.search import make_search, run_trials
from stateset_agents.training.hpo.spaces import agent_parameters, with_parameters
from stateset_agents.training.hpo.summary import TrialRecord, ranked
from stateset_agents.training.hpo.trial import StepReport, TrialRunner
from stateset_agents.training.hpo.validation import given_validation
from stateset_agents.training.trainer import Trainer
from tasks import paths, train_policy

STATE = paths.STATE / "search_pays"
SPACE = {
    "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 5e-3},
    "temperature": {"type": "uniform", "low": 0.3, "high": 1.0},
    "scale_advantages": {"type": "categorical", "choices": [True, False]},
}
TRIALS, STARTUP_TRIALS, SEEDS = 4, 2, (0, 1, 2)
BUDGET = {
    "num_episodes": 4,
    "num_generations": 4,
    "per_device_train_batch_size": 2,
    "warm_start_steps": 0,
}
VALIDATION_PER_INTENT = 2
HELDOUT = EvaluationConfig(seeds=[101, 102], scenarios_per_intent=1)


@dataclass(frozen=True)
class _Remembering(TrialRunner):
    """Parameters that were tried in another study come to the same values: they are not run again.

    `known` is by parameters; `keep` is called when it has grown.
    """

    known: dict[str, dict[str, float]] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None

    async def run(
        self, parameters: Mapping[str, Any], *, repeat: int = 0, report: StepReport | None = None
    ) -> dict[str, float]:
        key = json.dumps(dict(parameters), sort_keys=True)
        if key not in self.known:
            self.known[key] = await super().run(parameters, repeat=repeat, report=report)
            self.keep()
        return self.known[key]


def main() -> None:
    """Go on for so many minutes, or to the end."""
    parser = argparse.ArgumentParser(description="Whether a search pays.")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_pays.json"))
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    asyncio.run(_Experiment(arguments.out, deadline).run())


class _Experiment:
    def __init__(self, out: Path, deadline: float) -> None:
        self._out, self._deadline = out, deadline
        found = json.loads(out.read_text()) if out.is_file() else {}
        self._known: dict[str, dict[str, float]] = found.get("measured", {})
        self._played: dict[str, PolicyResult] = {}
        self._studies: dict[str, list[TrialRecord]] = {}
        self._heldout: dict[str, Any] = found.get("heldout", {})
        config = run_config.load(paths.PARAMS)
        train = with_parameters(config.train, BUDGET)
        self._config: RunConfig = config.model_copy(update={"train": train})

    async def run(self) -> None:
        """Studies by seed, a TPE and a random one each, and what is best of them held out."""
        runner = self._runner(self._start_model())
        for seed in SEEDS:
            for sampler in get_args(SamplerName):
                name = f"{sampler} {seed}"
                if not await self._study(name, sampler, seed, runner):
                    return
                if not await self._hold_out(name, runner):
                    return

    def _start_model(self) -> Path:
        """The line's policy as a whole model, made once."""
        folder = STATE / "start"
        if not folder.exists():
            STATE.mkdir(parents=True, exist_ok=True)
            merge_adapter(paths.POLICY, paths.BASE_MODEL, STATE / "merging")
            (STATE / "merging").rename(folder)
        return folder

    def _runner(self, base: Path) -> _Remembering:
        trained = train_policy.trainer_of(self._config)
        chosen = select_scenarios(
            [one.model_dump() for one in read_scenarios(paths.VALIDATED / "validation.jsonl")],
            VALIDATION_PER_INTENT,
        )
        ids = {one["id"] for one in chosen}
        scored_on = [
            one for one in read_scenarios(paths.VALIDATED / "validation.jsonl") if one.id in ids
        ]
        spoken = AgentConfig(model_name=str(base), **self._config.agent.model_dump())
        return _Remembering(
            MultiTurnAgent(spoken),
            trained.environment,
            trained.reward_function,
            given_validation(trained.environment, make_environment(scored_on), 1),
            self._config.train,
            known=self._known,
            keep=self._write,
        )

    async def _study(
        self, name: str, sampler: SamplerName, seed: int, runner: _Remembering
    ) -> bool:
        """Whether all trials have ended."""
        settings = HPOConfig(
            search_space=SPACE,
            n_trials=TRIALS,
            sampler=sampler,
            startup_trials=STARTUP_TRIALS,
            seed=seed,
            pruning=False,
            confirm_top=0,
            storage=str(STATE / "search.journal"),
            study_name=name,
        )
        search = make_search(settings, runner)
        await run_trials(search, "search", self._deadline, wait=True)
        self._studies[name] = search.open().records()
        self._write()
        return len(self._studies[name]) == TRIALS

    async def _hold_out(self, name: str, runner: _Remembering) -> bool:
        """Whether the study's best was compared with the default."""
        best = ranked(self._studies[name], {"reward": "maximize"})[0]
        if name in self._heldout and self._heldout[name]["params"] == best.params:
            return True
        for params in ({}, best.params):
            key = json.dumps(params, sort_keys=True)
            if key in self._played:
                continue
            if time.monotonic() > self._deadline:
                return False
            self._played[key] = await self._play(params, runner)
        ours = self._played[json.dumps(best.params, sort_keys=True)]
        found = compare(ours, self._played["{}"], HELDOUT)
        self._heldout[name] = {
            "params": best.params,
            "reward": _mean(ours),
            "default_reward": _mean(self._played["{}"]),
            "difference": asdict(found.differences["reward"]),
            "difference_by_intent": asdict(found.reward_by_other_cluster),
            "rubric": asdict(found.differences["rubric"]),
            "pairs": found.pairs,
        }
        self._write()
        return True

    async def _play(self, params: Mapping[str, Any], runner: TrialRunner) -> PolicyResult:
        """Train as in the search, then play the held-out intents."""
        scenarios = select_scenarios(
            [one.model_dump() for one in read_scenarios(paths.VALIDATED / "heldout.jsonl")],
            HELDOUT.scenarios_per_intent,
        )
        own = agent_parameters(params)
        trainer = Trainer(
            runner.agent.with_own_engine(**own),
            runner.environment,
            runner.reward_function,
            with_parameters(runner.config, params),
        )
        try:
            agent = await trainer.train()
            return await play(
                Candidate("challenger", "trained", agent.engine),
                scenarios,
                runner.reward_function,
                self._config.agent.model_copy(update=own),
                HELDOUT,
            )
        finally:
            await trainer.close()

    def _write(self) -> None:
        budget = {
            **BUDGET,
            "trials": TRIALS,
            "startup_trials": STARTUP_TRIALS,
            "validation_conversations": 6 * VALIDATION_PER_INTENT,
            "heldout": HELDOUT.model_dump(include={"seeds", "scenarios_per_intent"}),
        }
        studies = {name: [asdict(one) for one in found] for name, found in self._studies.items()}
        told = {
            "space": SPACE,
            "budget": budget,
            "measured": self._known,
            "studies": studies,
            "heldout": self._heldout,
        }
        self._out.parent.mkdir(parents=True, exist_ok=True)
        beside = self._out.with_suffix(".tmp")
        beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._out)


def _mean(result: PolicyResult) -> float:
    rewards = [one.measures()["reward"] for one in result.scored]
    return sum(rewards) / len(rewards)


if __name__ == "__main__":
    main()
