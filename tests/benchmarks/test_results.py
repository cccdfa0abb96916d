"""Figures: what a result file says follows from its samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results import Case, Result, write_table
from benchmarks.scaling import exponent


def _case() -> Case:
    return Case(
        "single_turn",
        samples={
            "ours": [{"seconds": 2.0, "peak_bytes": 10}, {"seconds": 1.0, "peak_bytes": 30}],
            "trl": [{"seconds": 9.0, "peak_bytes": 40}, {"seconds": 6.0, "peak_bytes": 40}],
        },
        skipped={"vllm": "not installed"},
    )


def test_medians_are_of_all_samples_and_ratios_are_of_medians() -> None:
    case = _case()
    assert case.medians["ours"] == {"seconds": 1.5, "peak_bytes": 20}
    assert case.medians["trl"] == {"seconds": 7.5, "peak_bytes": 40}
    assert case.ratios == {"trl": {"seconds": 5.0, "peak_bytes": 2.0}}


def test_a_side_that_was_not_measured_has_no_ratio_but_a_reason() -> None:
    case = Case("x", samples={"trl": [{"seconds": 1.0}]}, skipped={"ours": "broken"})
    assert case.ratios == {"trl": {}}
    assert case.skipped == {"ours": "broken"}


def test_a_result_file_holds_machine_versions_revision_samples_and_what_follows(
    tmp_path: Path,
) -> None:
    result = Result("trl", "says", False, [_case()], 3.0, "2026-01-01T00:00:00+00:00")
    written = json.loads(result.write(tmp_path).read_text())
    assert set(written) >= {"machine", "versions", "revision", "started", "seconds", "cases"}
    assert written["versions"]["torch"]
    (case,) = written["cases"]
    assert case["samples"]["trl"][0] == {"seconds": 9.0, "peak_bytes": 40}
    assert case["ratios"]["trl"]["seconds"] == 5.0


def test_the_table_shows_medians_ratios_and_what_is_missing(tmp_path: Path) -> None:
    Result("trl", "says", False, [_case()], 3.0, "2026-01-01T00:00:00+00:00").write(tmp_path)
    table = write_table(tmp_path).read_text()
    assert "| trl | 7.5 (5.00x) |" in table
    assert "vllm was not measured: not installed" in table


@pytest.mark.parametrize(("power", "expected"), [(1, 1.0), (2, 2.0), (0, 0.0)])
def test_the_exponent_of_a_power_law_is_its_power(power: int, expected: float) -> None:
    sizes = [1.0, 2.0, 4.0, 32.0]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(expected)
