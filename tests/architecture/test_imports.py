"""What may import what, and what must stay quick to import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "mlflow", "numpy", "prefect", "dvc", "great_expectations")
NAMES_OF_NO_ROOM = {"utils", "util", "helpers", "common", "manager", "misc", "shared", "enhanced"}


def _imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_rooms_keep_their_import_contracts() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import stateset_agents",
        "import stateset_agents.run_config",
        "from stateset_agents import run_config; run_config.load('params.yaml')",
        "from stateset_agents import cli; cli.main(['--help'])",
    ],
)
def test_configuration_and_help_load_without_the_heavy_libraries(statement: str) -> None:
    # the help text goes to standard output too; none of its words is one of these names
    assert _imported_by(statement) & set(HEAVY) == set()


def test_no_room_has_a_name_that_says_nothing() -> None:
    named = {
        path.stem
        for folder in ("components", "tasks", "flows")
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.is_dir()
    }
    assert named & NAMES_OF_NO_ROOM == set()


def test_the_public_surface_is_this_list_and_all_of_it_can_be_imported() -> None:
    package = importlib.import_module("stateset_agents")
    assert sorted(package.__all__) == [
        "AgentConfig",
        "CheckpointCallback",
        "CompositeReward",
        "ConcisenessReward",
        "ConversationEnvironment",
        "ConversationTurn",
        "CorrectnessReward",
        "EarlyStoppingCallback",
        "EngagementReward",
        "Environment",
        "EnvironmentState",
        "HelpfulnessReward",
        "MultiTurnAgent",
        "MultiTurnGRPOTrainer",
        "MultiTurnTrajectory",
        "RewardFunction",
        "RewardResult",
        "SafetyReward",
        "StateSetError",
        "TaskCompletionReward",
        "TrainingCallback",
        "TrainingConfig",
        "TrajectoryGroup",
        "ValueFunction",
        "check_environment",
        "check_reward",
        "reward_function",
        "train",
    ]
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
