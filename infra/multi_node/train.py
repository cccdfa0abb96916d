"""One process of a training run over several machines; torchrun starts one for every GPU.

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 --master-addr HOST --master-port 29500 \
        -m infra.multi_node.train params.yaml --save FOLDER

Reads the sections `agent`, `rewards` and `train`, scenarios and base model of the retraining line,
the same on every machine; checkpoints and the trained policy go to FOLDER, which all machines must
see if a run is to be resumed. What it does not do is the line's own: lineage, tracking, evaluation.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.data.readers import read_scenarios
from stateset_agents.rewards.build import build_reward
from stateset_agents.run_config import RunConfig, load
from stateset_agents.tracking.loggers import JsonlLogger
from stateset_agents.training.callbacks import CheckpointCallback
from stateset_agents.training.checkpoint import latest_checkpoint
from stateset_agents.training.distributed import DistributedTrainer

_log = logging.getLogger(__name__)


def make_trainer(
    config: RunConfig, *, base_model: Path, scenarios: Path, reward_model: Path, save: Path
) -> DistributedTrainer:
    """This process's trainer; how many there are, torchrun has said."""
    played = [scenario.model_dump() for scenario in read_scenarios(scenarios)]
    learned = config.rewards.weights.learned > 0
    save.mkdir(parents=True, exist_ok=True)
    return DistributedTrainer(
        agent=MultiTurnAgent(AgentConfig(model_name=str(base_model), **config.agent.model_dump())),
        environment=ConversationEnvironment(
            played, max_turns=2 * max(len(scenario["user_responses"]) for scenario in played)
        ),
        reward_fn=build_reward(config.rewards, reward_model if learned else None),
        config=config.train,
        logger=JsonlLogger(save / "steps.jsonl"),
    )


async def train(trainer: DistributedTrainer, save: Path) -> None:
    """Train, or go on from the newest checkpoint; the policy is in `final` then."""
    try:
        await trainer.train(
            [CheckpointCallback(save)], resume_from=save if latest_checkpoint(save) else None
        )
        if trainer.is_first:
            _log.info("trained %d steps; the policy is in %s", trainer.step, save / "final")
    finally:
        await trainer.close()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path, help="params.yaml")
    parser.add_argument("--save", type=Path, required=True, help="checkpoints, metrics and policy")
    parser.add_argument("--base-model", type=Path, default=Path("data/base_model"))
    parser.add_argument("--scenarios", type=Path, default=Path("data/validated/train.jsonl"))
    parser.add_argument("--reward-model", type=Path, default=Path("data/reward_model"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    trainer = make_trainer(
        load(given.config),
        base_model=given.base_model,
        scenarios=given.scenarios,
        reward_model=given.reward_model,
        save=given.save,
    )
    asyncio.run(train(trainer, given.save))


if __name__ == "__main__":
    main()
