"""Each example trains and shows conversations before and after, on a model of two layers."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.guide.pages import ROOT

EXAMPLES = {
    "customer_service_bot": ["--episodes", "4"],
    "technical_support_agent": ["--steps", "2"],
    "sales_assistant": ["--episodes", "4"],
    "custom_domain_agent": ["--episodes", "4"],
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_and_shows_before_and_after(
    name: str, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(name)
    small = ["--model", str(tiny_model_dir), "--max-new-tokens", "6", *EXAMPLES[name]]

    before, after = asyncio.run(module.run(module.parser().parse_args(small)))

    told = capsys.readouterr().out
    assert (
        told.index("--- before training ---")
        < told.index("step  2 of 2")
        < told.index("--- after training ---")
    )
    assert 0 <= before <= 1
    assert 0 <= after <= 1
    assert told.count("     user: ") >= 4


def test_every_example_is_run_and_there_are_no_others() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_held_out_cases_are_never_trained_on() -> None:
    for name, mapping in (
        ("customer_service_bot", "GOODS"),
        ("technical_support_agent", "FAULTS"),
        ("sales_assistant", "CATALOGUE"),
        ("custom_domain_agent", "SHELVES"),
    ):
        module = load(name)
        assert set(module.HELD_OUT) < set(getattr(module, mapping))
