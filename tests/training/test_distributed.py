"""Several processes train as one does, and one that ends takes the run with it, not for ever."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reward import CompositeReward, RewardFunction, reward_function
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError, ProcessLostError, RewardError
from stateset_agents.training.callbacks import CheckpointCallback, TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.distributed import DistributedTrainer
from stateset_agents.training.processes import Processes, own_rows
from stateset_agents.training.trainer import Trainer
from tests.training.made import make_advantages, make_rows, to_batch
from tests.training.runs import SCENARIOS, LettersE, Remembered, Weights, make_agent, train

SETTINGS: dict[str, Any] = {
    "num_episodes": 8,
    "num_generations": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    # with AdamW's own 1e-8 a gradient that is nothing but rounding would move a weight as any other
    "adam_epsilon": 1e-4,
    "use_lora": True,
    "bf16": False,
    "save_steps": 1,
    "logging_steps": 1,
}
TOTAL_STEPS = 4


class Heard(TrainingCallback):
    """Remembers whose conversations it was told of."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_episode(self, trainer: Trainer, trajectory: Any) -> None:
        self.names.append(trajectory.trajectory_id)


def parts_of(folder: Path, reward: RewardFunction | None = None, **settings: Any) -> Any:
    """Agent, environment, reward and configuration."""
    return (
        make_agent(folder),
        ConversationEnvironment(SCENARIOS, max_turns=4),
        reward or LettersE(),
        TrainingConfig(**{**SETTINGS, **settings}),
    )


def make(
    folder: Path,
    count: int,
    *,
    reward: RewardFunction | None = None,
    strategy: str = "ddp",
    **settings: Any,
) -> Trainer:
    """A trainer in `count` processes: the plain one for 1."""
    logger, parts = Remembered(), parts_of(folder, reward, **settings)
    if count == 1:
        return Trainer(*parts, logger=logger)
    return DistributedTrainer(
        *parts, num_processes=count, timeout_seconds=120, logger=logger, strategy=strategy
    )


def logged(trainer: Trainer) -> list[dict[str, float]]:
    assert isinstance(trainer.logger, Remembered)
    return [
        {
            name: value
            for name, value in metrics.items()
            if not name.startswith(("seconds/", "tokens_per_second/"))
        }
        for _, metrics in trainer.logger.steps
    ]


def assert_same_run(first: Trainer, second: Trainer) -> None:
    """Loss, rewards and every other metric of every step."""
    assert len(logged(first)) == len(logged(second)) > 0
    for one, other in zip(logged(first), logged(second), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
        assert one["policy/loss"] == pytest.approx(other["policy/loss"], abs=1e-5)


def assert_close(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-5, msg=name)


def spoken(agent: MultiTurnAgent) -> str:
    agent.config.seed = 1
    return asyncio.run(agent.generate_response([{"role": "user", "content": "Hello"}]))


class TellsSeeds(LettersE):
    """Writes down what torch's generator began with, a file for each process that asks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="LettersE")  # so that its metrics have the same names
        self.folder = folder

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        (self.folder / f"seed-{os.getpid()}").write_text(str(torch.initial_seed()))
        return await super().compute_reward(turns, context)


def test_two_processes_train_as_one_and_either_resumes_the_other(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """One session of processes answers several questions: starting them is what costs."""
    alone, two = make(tiny_model_dir, 1), make(tiny_model_dir, 2, reward=TellsSeeds(tmp_path))
    by_one, by_two = tmp_path / "one", tmp_path / "two"
    heard = Heard()

    expected = train(alone, [CheckpointCallback(by_one, keep=9)])
    weights = train(two, [CheckpointCallback(by_two, keep=9), heard])

    assert_same_run(two, alone)
    assert_close(weights, expected)
    played = TOTAL_STEPS * alone.config.groups_per_step * alone.config.num_generations
    assert len(heard.names) == len(set(heard.names)) == played
    assert not torch.distributed.is_initialized()
    # dropout draws from these: rows of two processes are not to lose the same places
    seeds = {int(path.read_text()) for path in tmp_path.glob("seed-*")}
    assert len(seeds) == 2
    assert two.config.seed in seeds

    fewer = train(make(tiny_model_dir, 1), resume_from=by_two / "step_2")
    more = train(make(tiny_model_dir, 2), resume_from=by_one / "step_2")
    assert_close(fewer, expected)
    assert_close(more, expected)


def test_the_agent_that_was_passed_in_speaks_with_the_trained_weights(
    tiny_model_dir: Path,
) -> None:
    two, alone = (
        make(tiny_model_dir, count, num_episodes=2, learning_rate=0.1) for count in (2, 1)
    )

    async def run(trainer: Trainer) -> MultiTurnAgent:
        return await trainer.train()

    agent = asyncio.run(run(two))
    assert agent is two.agent
    assert spoken(agent) == spoken(asyncio.run(run(alone)))
    untrained = make_agent(tiny_model_dir)
    asyncio.run(untrained.initialize())
    assert spoken(agent) != spoken(untrained)


def test_shared_out_weights_train_as_whole_ones_and_checkpoints_are_whole(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "use_lora": False, "kl_coefficient": 0.05, "micro_batch_tokens": 100, "num_episodes": 4,
    }  # fmt: skip
    alone, two = (
        make(tiny_model_dir, 1, **settings),
        make(tiny_model_dir, 2, strategy="fsdp", **settings),
    )

    expected = train(alone)
    weights = train(two, [CheckpointCallback(tmp_path, keep=9)])

    assert_same_run(two, alone)
    assert_close(weights, expected)
    fewer = train(make(tiny_model_dir, 1, **settings), resume_from=tmp_path / "step_1")
    assert_close(fewer, expected)
    more = make(tiny_model_dir, 2, strategy="fsdp", **settings)
    assert_close(train(more, resume_from=tmp_path / "step_1"), expected)
    assert more.save_checkpoint(tmp_path / "after").is_dir()


TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
]  # fmt: skip


def launched(
    launcher: list[str], folder: Path, work: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """`launched.py` in the processes that a launcher starts."""
    script = Path(__file__).with_name("launched.py")
    return subprocess.run(
        [*launcher, str(script), str(folder), str(work), *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ".", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_processes_that_were_given_different_settings_do_not_begin(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    done = launched(TORCHRUN, tiny_model_dir, tmp_path, "different")
    assert done.returncode != 0
    assert "process 1 differs from the first in: training settings" in done.stderr
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        TORCHRUN,
        [
            str(Path(sys.executable).parent / "accelerate"),
            "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        ],
    ],
    ids=["torchrun", "accelerate launch"],
)  # fmt: skip
def test_a_launcher_s_processes_train_as_one(
    tiny_model_dir: Path, tmp_path: Path, launcher: list[str]
) -> None:
    done = launched(launcher, tiny_model_dir, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    expected = train(make(tiny_model_dir, 1))
    for rank in range(2):
        assert_close(load_file(tmp_path / f"weights-{rank}.safetensors"), expected)
    assert (tmp_path / "checkpoints/step_4/state.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"use_lora": False, "kl_coefficient": 0.05},
        {"algorithm": "gspo", "num_iterations": 2},
        {"algorithm": "dapo", "resampling_rounds": 2},
        {"algorithm": "reinforce++", "off_policy_steps": 1},
        {"gradient_accumulation_steps": 3, "num_episodes": 9},
        {"algorithm": "ppo"},
    ],
    ids=lambda settings: ", ".join(map(str, settings.values())),
)
def test_two_processes_train_as_one_with(tiny_model_dir: Path, settings: dict[str, Any]) -> None:
    alone, two = make(tiny_model_dir, 1, **settings), make(tiny_model_dir, 2, **settings)
    expected, weights = train(alone), train(two)
    assert_same_run(two, alone)
    assert_close(weights, expected)


@pytest.mark.slow
def test_two_processes_with_dropout_go_on_bit_for_bit(tiny_model_dir: Path, tmp_path: Path) -> None:
    def dropping() -> Trainer:
        return make(tiny_model_dir, 2, num_episodes=4, lora_dropout=0.5)

    expected = train(dropping(), [CheckpointCallback(tmp_path, keep=9)])
    resumed = train(dropping(), resume_from=tmp_path / "step_1")
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


class Deadly(LettersE):
    """Kills, or raises in, any process but the one that it was made in."""

    def __init__(self, raises: bool = False, after: int = 2) -> None:
        super().__init__()
        self.home, self.raises, self.left = os.getpid(), raises, after

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        if os.getpid() != self.home:
            self.left -= 1
            if self.left < 0 and self.raises:
                raise ValueError("no more rewards")
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return await super().compute_reward(turns, context)


def test_a_process_that_is_killed_ends_the_run_with_a_checkpoint_to_go_on_from(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    # the second process plays one group of four conversations a step: it dies in the third
    doomed = make(tiny_model_dir, 2, reward=Deadly(after=8))

    with pytest.raises(ProcessLostError) as caught:
        train(doomed, [CheckpointCallback(tmp_path)])

    assert "process 1 of 2 was killed by signal 9 (SIGKILL)" in str(caught.value)
    assert f"the newest checkpoint is {tmp_path / 'step_2'}" in str(caught.value)
    assert not torch.distributed.is_initialized()
    resumed = train(make(tiny_model_dir, 1), resume_from=tmp_path)
    assert_close(resumed, train(make(tiny_model_dir, 1)))


def test_what_a_reward_raises_in_another_process_is_raised_here(tiny_model_dir: Path) -> None:
    with pytest.raises(
        RewardError, match=r"ValueError on conversation . of 4: no more rewards"
    ) as caught:
        train(make(tiny_model_dir, 2, reward=Deadly(raises=True)))
    assert caught.value.__notes__ == ["raised in process 1 of 2"]


# --- without processes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "settings", "message"),
    [
        ({"num_gpus": 4}, {}, "num_gpus=4, and this machine shows 0: .*num_processes=2"),
        ({"num_gpus": 1, "num_processes": 2}, {}, "give num_gpus for processes with a GPU each"),
        ({"num_processes": 0}, {}, "num_processes=0: it is at least 1"),
        ({"strategy": "magic"}, {}, "strategy='magic' is unknown; choose from ddp, fsdp"),
        ({"strategy": "deepspeed"}, {}, 'strategy="deepspeed" is not built: .* strategy="fsdp"'),
        ({"strategy": "fsdp"}, {"use_lora": False}, "shares weights out .* and there is one"),
        (
            {"strategy": "fsdp", "num_processes": 2},
            {},
            "use_lora=True: an adapter is small",
        ),
        (
            {"strategy": "fsdp", "num_processes": 2},
            {"use_lora": False, "advantage_baseline": "value"},
            "with a critic",
        ),
        (
            {"strategy": "fsdp", "num_processes": 2},
            {"use_lora": False, "algorithm": "dpo"},
            "with algorithm='dpo' is not built: .*set strategy=\"ddp\"",
        ),
        (
            {"num_processes": 2},
            {"gradient_accumulation_steps": 1},
            "one step takes 1 scenarios .* there are 2 processes: .*group stays whole",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_started(
    tiny_model_dir: Path, keywords: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DistributedTrainer(
            agent=make_agent(tiny_model_dir),
            environment=ConversationEnvironment(SCENARIOS),
            reward_fn=LettersE(),
            config=TrainingConfig(**{**SETTINGS, **settings}),
            **keywords,
        )


def test_a_reward_that_cannot_travel_is_named(tiny_model_dir: Path) -> None:
    class Local(LettersE):
        """Of a class that no other process can import."""

    with pytest.raises(ConfigurationError, match=r"^reward_fn cannot be sent .*top of a module"):
        train(make(tiny_model_dir, 2, reward=Local()))


@reward_function(weight=0.5)
def brevity(turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None) -> float:
    """Short is good."""
    return 1 / len(turns)


def test_a_decorated_function_of_a_module_travels_though_its_name_is_the_reward_s() -> None:
    composed = CompositeReward([brevity, LettersE()])
    travelled = pickle.loads(pickle.dumps(composed))
    turns = [ConversationTurn(role="assistant", content="eel")]
    assert asyncio.run(travelled.compute_rewards([(turns, {})])) == asyncio.run(
        composed.compute_rewards([(turns, {})])
    )


@pytest.mark.parametrize("prefix", [24, 0], ids=["groups", "rows that share nothing"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_row_is_exactly_one_process_s_and_none_has_much_more_than_another(
    prefix: int, count: int
) -> None:
    rows = make_rows(groups=4, generations=4, prefix=prefix)
    batch = to_batch(rows, make_advantages(rows))
    shares = []
    for rank in range(count):
        processes = Processes()
        processes.rank, processes.count = rank, count
        shares.append(own_rows(batch, processes).tolist())

    assert sorted(row for share in shares for row in share) == list(range(len(rows)))
    tokens = [sum(len(rows[row].token_ids) for row in share) for share in shares]
    longest = max(len(row.token_ids) for row in rows)
    # a group of four goes to one process where there are groups enough
    assert max(tokens) - min(tokens) <= (4 if prefix and count <= 4 else 1) * longest
