"""The order of measuring, and what becomes of a side that cannot run."""

from __future__ import annotations

import pytest

from benchmarks.alternate import Plan, measure
from benchmarks.results import Case

ECHO = Plan("tests.benchmarks.echo_side", {"number": 3})
BROKEN = Plan("tests.benchmarks.no_such_module")


def test_rounds_that_warm_up_do_not_count() -> None:
    case = measure(Case("x"), {"ours": ECHO, "other": ECHO}, warmup=1, steps=2)
    assert [sample["round"] for sample in case.samples["ours"]] == [2, 3]
    assert [sample["round"] for sample in case.samples["other"]] == [2, 3]
    assert case.samples["ours"][0]["number"] == 3
    assert case.samples["ours"][0]["peak_bytes"] > 2**20


def test_another_side_that_fails_is_left_out_with_its_last_words() -> None:
    case = measure(Case("x"), {"ours": ECHO, "other": BROKEN}, warmup=0, steps=1)
    assert list(case.samples) == ["ours"]
    assert "no_such_module" in case.skipped["other"]


def test_our_own_failure_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no_such_module"):
        measure(Case("x"), {"ours": BROKEN}, warmup=0, steps=1)


def test_a_side_that_is_missing_is_not_started() -> None:
    missing = Plan("tests.benchmarks.no_such_module", missing="it is not installed")
    case = measure(Case("x"), {"ours": ECHO, "other": missing}, warmup=0, steps=1)
    assert case.skipped == {"other": "it is not installed"}
