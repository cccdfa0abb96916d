"""`quick_hpo` as the guide writes it: trials from the same start, and an agent left as it was."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.exceptions import ConfigurationError, TrainingError
from stateset_agents.training.hpo import HPOConfig
from stateset_agents.training.hpo.summary import BASE
from tests.training.hpo.made import RATES, SCENARIOS, make_base, search
from tests.training.runs import LettersE, make_agent


def test_equal_parameters_give_equal_values_whatever_was_tried_before(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    points = [{"learning_rate": 0.03}, {"learning_rate": 0.001}]
    summary = search(tiny_model_dir, tmp_path, start_with=points, n_trials=2)
    alone = search(tiny_model_dir, tmp_path, start_with=points[1:], n_trials=1)
    first, second = summary.trials
    assert [first.params, second.params] == points
    assert second.measures["reward"] == alone.trials[0].measures["reward"]
    assert second.steps == alone.trials[0].steps
    assert first.measures["reward"] != second.measures["reward"]
    assert [trial.state for trial in summary.trials] == ["complete", "complete"]
    assert min(trial.duration_seconds for trial in summary.trials) > 0


def test_the_callers_agent_and_environment_are_left_as_they_were(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    agent, environment = make_agent(tiny_model_dir, seed=5), ConversationEnvironment(SCENARIOS)
    asked = [{"role": "user", "content": "Where is my parcel?"}]
    config = agent.config.model_dump()

    async def speak() -> str:
        await agent.initialize()
        return await agent.generate_response(asked)

    before = asyncio.run(speak())
    space = {**RATES, "temperature": {"type": "uniform", "low": 0.5, "high": 0.9}}
    search(tiny_model_dir, tmp_path, agent=agent, environment=environment, search_space=space)
    assert asyncio.run(speak()) == before
    assert agent.config.model_dump() == config
    assert list(environment.scenarios) == SCENARIOS


def test_the_best_is_named_by_direction(tiny_model_dir: Path, tmp_path: Path) -> None:
    highest = search(tiny_model_dir, tmp_path, n_trials=2)
    lowest = search(tiny_model_dir, tmp_path, n_trials=2, optimization_direction="minimize")
    rewards = [trial.measures["reward"] for trial in highest.trials]
    assert [trial.measures["reward"] for trial in lowest.trials] == rewards
    assert highest.best_reward == max(rewards)
    assert lowest.best_reward == min(rewards)
    assert highest.best_params == highest.trials[rewards.index(max(rewards))].params


def test_the_best_are_run_again_with_fresh_seeds_and_the_base_beside_them(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    summary = search(tiny_model_dir, tmp_path, n_trials=2, confirm_top=1, confirm_seeds=2)
    base, best = summary.confirmations
    assert (base.number, best.number) == (BASE, summary.best_trial.number)
    assert len({best.searched, *best.again}) == 3  # every seed is another run
    assert base.searched is not None
    assert best.searched is not None
    assert summary.best_reward == pytest.approx(sum(best.again) / 2)
    assert summary.gain_in_search == pytest.approx(best.searched - base.searched)
    assert summary.gain_again == pytest.approx(sum(best.again) / 2 - sum(base.again) / 2)
    assert summary.luck == pytest.approx(
        best.searched - base.searched - (sum(best.again) - sum(base.again)) / 2
    )


def test_trials_are_scored_on_whole_intents_that_are_not_trained_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    met: list[set[str]] = []

    class Seen(LettersE):
        async def compute_rewards(self, conversations: Any) -> Any:
            met.append({context["scenario"]["intent"] for _, context in conversations})
            return await super().compute_rewards(conversations)

    summary = search(tiny_model_dir, tmp_path, n_trials=1, reward_function=Seen())
    *trained_on, scored_on = met  # a batch each, and the validation at the end
    assert len(trained_on) == 2
    assert len(scored_on) == 1
    assert not scored_on & set().union(*trained_on)
    assert summary.validation == "2 scenarios: 1 whole intents of 3, not trained on"


def test_sizes_and_seeds_do_what_they_say(tiny_model_dir: Path, tmp_path: Path) -> None:
    scored: list[int] = []

    class Counted(LettersE):
        async def compute_rewards(self, conversations: Any) -> Any:
            scored.append(len(conversations))
            return await super().compute_rewards(conversations)

    settings: dict[str, Any] = {"n_trials": 1, "reward_function": Counted()}
    summary = search(
        tiny_model_dir, tmp_path, episodes_per_trial=3, validation_share=0.6,
        validation_samples=3, **settings,
    )  # fmt: skip
    assert list(summary.trials[0].steps) == [1, 2, 3]
    assert summary.validation == "4 scenarios: 2 whole intents of 3, not trained on"
    assert scored == [2, 2, 2, 4 * 3]
    other = search(tiny_model_dir, tmp_path, seed=1, **settings)
    assert other.best_params != summary.best_params


def test_a_validation_part_that_is_trained_on_is_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="intent parcel, refund is trained on as well"):
        search(
            tiny_model_dir,
            tmp_path,
            environment=ConversationEnvironment(SCENARIOS[:4]),
            validation_environment=ConversationEnvironment(
                [{**one, "id": f"other-{one['id']}"} for one in SCENARIOS]
            ),
        )


def test_several_objectives_have_a_pareto_front(tiny_model_dir: Path, tmp_path: Path) -> None:
    summary = search(
        tiny_model_dir, tmp_path, n_trials=3,
        search_space={"max_new_tokens": {"type": "int", "low": 2, "high": 8}},
        start_with=[{"max_new_tokens": 2}, {"max_new_tokens": 8}, {"max_new_tokens": 5}],
        objectives={"answer_tokens": "minimize", "reward": "maximize"},
    )  # fmt: skip
    lengths = [(trial.values or {})["answer_tokens"] for trial in summary.trials]
    rewards = [(trial.values or {})["reward"] for trial in summary.trials]
    expected = [
        n
        for n in range(3)
        if not any(
            lengths[m] <= lengths[n]
            and rewards[m] >= rewards[n]
            and (lengths[m], rewards[m]) != (lengths[n], rewards[n])
            for m in range(3)
        )
    ]
    assert [trial.number for trial in summary.pareto_front] == expected
    assert summary.best_params == {"max_new_tokens": 2}


def test_a_trial_over_its_time_fails_and_the_search_says_why(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="ended at step 1 of 2 after"):
        search(tiny_model_dir, tmp_path, n_trials=1, trial_time_limit_seconds=1e-9)


def test_a_trial_that_is_pruned_saves_steps_and_leaves_neither_memory_nor_files(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _models_in_memory()
    summary = search(
        tiny_model_dir, tmp_path, n_trials=6, study_name="s", pruner="hyperband",
        pruning_warmup_steps=1, base_config=make_base(num_episodes=6),
    )  # fmt: skip
    pruned = [trial for trial in summary.trials if trial.state == "pruned"]
    assert pruned
    assert all(len(trial.steps) < 6 and trial.values is None for trial in pruned)
    assert all("behind earlier trials at step" in trial.reason for trial in pruned)
    assert _models_in_memory() == before
    assert {path.name.partition(".journal")[0] for path in tmp_path.iterdir()} == {"hpo"}


def _models_in_memory() -> int:
    gc.collect()
    return sum(type(one) is LlamaForCausalLM for one in gc.get_objects())


def test_no_trial_begins_after_the_time_limit(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none of 0 trials was completed"):
        search(tiny_model_dir, tmp_path, n_trials=50, time_limit_seconds=1e-9)


def test_a_config_leaves_no_room_for_single_settings(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = HPOConfig(search_space=RATES, confirm_top=0, storage=str(tmp_path / "journal"))
    with pytest.raises(ConfigurationError, match="got an hpo_config and beside it seed"):
        search(tiny_model_dir, tmp_path, hpo_config=config, seed=1)
    summary = search(tiny_model_dir, tmp_path, hpo_config=config, n_trials=1)
    assert len(summary.trials) == 1


def test_what_cannot_start_is_refused_before_a_trial(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="backend: found 'grid'"):
        search(tiny_model_dir, tmp_path, backend="grid")
    stub = make_agent(tiny_model_dir, use_stub_model=True)
    with pytest.raises(ConfigurationError, match="a stub has no weights to train"):
        search(tiny_model_dir, tmp_path, agent=stub)
    with pytest.raises(ConfigurationError, match="needs demonstrations"):
        search(tiny_model_dir, tmp_path, base_config=make_base(warm_start_steps=1))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match=r"study storage .* cannot be written"):
        search(tiny_model_dir, tmp_path, storage=str(blocked / "journal"))


def test_a_study_goes_on_only_as_the_same_search(tiny_model_dir: Path, tmp_path: Path) -> None:
    first = search(tiny_model_dir, tmp_path, study_name="s", n_trials=1)
    more = search(tiny_model_dir, tmp_path, study_name="s", n_trials=2)
    assert more.trials[0] == first.trials[0]
    assert len(more.trials) == 2
    other = {"learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-1}}
    with pytest.raises(ConfigurationError, match=r"study 's' in .* another search: search space"):
        search(tiny_model_dir, tmp_path, study_name="s", search_space=other)
    with pytest.raises(ConfigurationError, match="is another search: training settings"):
        search(tiny_model_dir, tmp_path, study_name="s", base_config=make_base(seed=1))


def test_an_earlier_studys_best_are_tried_first(tiny_model_dir: Path, tmp_path: Path) -> None:
    earlier = search(tiny_model_dir, tmp_path, study_name="earlier", n_trials=2)
    later = search(tiny_model_dir, tmp_path, n_trials=1, start_from_study="earlier", seed=9)
    assert later.trials[0].params == earlier.best_params
    with pytest.raises(ConfigurationError, match="has no study 'none'; it has earlier"):
        search(tiny_model_dir, tmp_path, start_from_study="none")
