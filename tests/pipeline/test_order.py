"""The flow, dvc.yaml and the code agree on what the steps are and what they depend on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import grimp
import networkx
import pytest
import yaml
from dvc.repo import Repo

from flows.steps import STEPS, StepName, steps_until
from stateset_agents.run_config import RunConfig
from tasks import paths

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# What only carries values (they are under `params`), starts a step or tells of it; a change of one
# of these changes no output.
CARRIERS = (
    "stateset_agents",
    "stateset_agents.debug",
    "stateset_agents.exceptions",
    "stateset_agents.run_config",
    "stateset_agents.settings",
    "tasks",
    "tasks.entry",
    "tasks.folders",
    "tasks.history",
    "tasks.paths",
)
ABOUT_A_RUN = "stateset_agents.tracking"  # loggers and links; the steps on the registry do list it
# What a step imports without its output hanging on it, with the reason.
WITHOUT_EFFECT = {
    # other sources than the one that is configured, and how files travel
    "fetch_base_model": (
        "stateset_agents.core.reasoning",
        "stateset_agents.inference",
        "stateset_agents.tracking.artifact_store",
        "stateset_agents.tracking.lineage",
        "stateset_agents.tracking.loggers",
        "stateset_agents.tracking.merging",
        "stateset_agents.tracking.mlflow_run",
        "stateset_agents.tracking.registry",
    ),
    # the schema of scenarios; this step reads preference pairs
    "train_reward_model": ("stateset_agents.core", "stateset_agents.inference.engine"),
    # a protocol without code
    "register_model": ("stateset_agents.inference.engine",),
    # how weights are written; promotion moves an alias
    "promote_model": ("stateset_agents.core.reasoning", "stateset_agents.inference", "tasks.tuned"),
}


# Sections that a step reads without its output hanging on them: where its run is kept, and what the
# base model is called.
SECTIONS_WITHOUT_EFFECT = {
    "fetch_base_model": {"tracking"},
    "train_reward_model": {"tracking"},
    "train_policy": {"base_model", "tracking"},
    "evaluate_policy": {"base_model"},
    "tune": {"tracking"},
}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("stateset_agents", "tasks", exclude_type_checking_imports=True)


def test_the_flow_runs_every_stage_after_those_that_it_depends_on() -> None:
    order = [step.name for step in STEPS]
    assert order == list(get_args(StepName))
    with Repo(str(ROOT)) as repository:
        graph = repository.index.graph
        assert sorted(stage.name for stage in graph) == sorted(order)
        for later, earlier in networkx.transitive_closure(graph).edges:
            assert order.index(earlier.name) < order.index(later.name)


def test_a_flow_may_end_early() -> None:
    assert [step.name for step in steps_until("train_reward_model")] == [
        "fetch_base_model",
        "validate_scenarios",
        "train_reward_model",
    ]


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_stage_runs_its_own_file(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"PATH=.venv/bin:$PATH python -m tasks.{stage}"
    assert f"tasks/{stage}.py" in STAGES[stage]["deps"]
    assert (ROOT / "tasks" / f"{stage}.py").is_file()


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_stage_depends_on_all_code_that_its_step_imports(
    stage: str, imports: grimp.ImportGraph
) -> None:
    deps = STAGES[stage]["deps"]
    missing = []
    for module in sorted(_imported_modules(imports, f"tasks.{stage}")):
        path = _path_of(module)
        if module.startswith(WITHOUT_EFFECT.get(stage, ())):
            continue
        if not any(path == dep or path.startswith(f"{dep}/") for dep in deps):
            missing.append(path)
    assert missing == []


def _imported_modules(imports: grimp.ImportGraph, start: str) -> set[str]:
    """All that is reached from a step without going through a carrier of values."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found or module in CARRIERS or module.endswith(("config", ".__init__")):
            continue
        if module.startswith(ABOUT_A_RUN) and not _is_about_the_registry(start):
            continue
        found.add(module)
        waiting += imports.find_modules_directly_imported_by(module)
    return found


def _is_about_the_registry(step: str) -> bool:
    return step in ("tasks.register_model", "tasks.promote_model", "tasks.fetch_base_model")


def _path_of(module: str) -> str:
    inside = module.replace(".", "/")
    path = Path(f"components/{inside}" if module.startswith("stateset_agents") else inside)
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def test_every_output_of_a_stage_is_where_the_steps_write() -> None:
    places = [
        value
        for name, value in vars(paths).items()
        if name.isupper() and isinstance(value, Path) and value.parts[0] == "data"
    ]
    for stage in STAGES.values():
        entries = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        for entry in entries:
            path = Path(entry if isinstance(entry, str) else next(iter(entry)))
            assert any(path == place or place in path.parents for place in places), path


def test_the_steps_on_the_registry_are_never_restored_from_a_cache() -> None:
    for stage, kind in (
        ("evaluate_policy", "metrics"),  # it compares with the champion of the day
        ("register_model", "outs"),
        ("promote_model", "outs"),
    ):
        (out,) = STAGES[stage][kind]
        assert next(iter(out.values())) == {"persist": True}


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_stage_depends_on_every_section_that_its_step_reads(stage: str) -> None:
    code = (ROOT / "tasks" / f"{stage}.py").read_text(encoding="utf-8")
    sections = set(re.findall(r"\bconfig\.(\w+)", code)) & set(RunConfig.model_fields)
    assert sections
    assert sections - SECTIONS_WITHOUT_EFFECT.get(stage, set()) <= set(STAGES[stage]["params"])
