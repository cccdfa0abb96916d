"""Results: every sample, their medians, the ratios of medians, as JSON and as one table.

Owns the form of a result file and of the table. A ratio is formed of two sides of one case, which
were measured in alternation in one run, and of nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe_machine, describe_revision, describe_versions

RESULTS = Path(__file__).parent / "results"
OURS = "ours"

Sample = Mapping[str, Any]


@dataclass
class Case:
    """One thing measured on one or more sides.

    Attributes:
        name: of the workload, or of what was counted.
        settings: what was asked for, and of which sides.
        samples: by side, in the order measured, warm-up left out.
        skipped: by side, why there are no samples.
        checks: single numbers that belong to the case, such as the difference of two losses.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, dict[str, float]]:
        """By side and quantity, of the quantities that are numbers in every sample."""
        return {side: _medians(samples) for side, samples in self.samples.items() if samples}

    @property
    def ratios(self) -> dict[str, dict[str, float]]:
        """By side and quantity: that side's median over ours. Above 1, ours takes less."""
        medians = self.medians
        ours = medians.pop(OURS, {})
        return {
            side: {
                name: value / ours[name]
                for name, value in theirs.items()
                if ours.get(name) and value
            }
            for side, theirs in medians.items()
        }


@dataclass
class Result:
    """One benchmark's outcome."""

    name: str
    says: str
    quick: bool
    cases: list[Case]
    seconds: float
    started: str

    def to_dict(self) -> dict[str, Any]:
        """What is written."""
        return {
            "name": self.name,
            "says": self.says,
            "quick": self.quick,
            "started": self.started,
            "seconds": self.seconds,
            "machine": describe_machine(),
            "versions": describe_versions(),
            "revision": describe_revision(),
            "cases": [
                {**asdict(case), "medians": case.medians, "ratios": case.ratios}
                for case in self.cases
            ],
        }

    def write(self, folder: Path) -> Path:
        """`folder/NAME.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return path


def write_table(folder: Path) -> Path:
    """`folder/README.md`: one table for each result file in the folder."""
    # experiments that go on from their own file (`search_pays`, `learning`) have a page elsewhere
    every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = [result for result in every if "cases" in result]
    parts = ["# Results\n", "Written by `make bench`; [performance.md](../../docs/performance.md) "]
    parts[1] += "says how to read them. Times are medians.\n"
    parts += [_section(result) for result in found]
    path = folder / "README.md"
    path.write_text("\n".join(parts))
    return path


def _section(result: Mapping[str, Any]) -> str:
    machine, revision = result["machine"], result["revision"]
    where = machine["accelerator"] or f"{machine['processor']}, {machine['cores']} cores"
    commit = (revision["commit"] or "unknown")[:9] + (
        " with changes" if revision["changed"] else ""
    )
    head = f"## {result['name']}\n\n{result['says']}\n\n{where}; commit {commit}; "
    head += f"{result['started']}{'; quick, no figures' if result['quick'] else ''}.\n"
    return "\n".join([head, *(_case_lines(case) for case in result["cases"])])


def _case_lines(case: Mapping[str, Any]) -> str:
    lines = [f"### {case['name']}\n"]
    shown = [name for name in _SHOWN if any(name in row for row in case["medians"].values())]
    if shown:
        lines.append("| side | " + " | ".join(_SHOWN[name] for name in shown) + " | samples |")
        lines.append("|---" * (len(shown) + 2) + "|")
        for side, row in case["medians"].items():
            cells = [_cell(name, row, case["ratios"].get(side, {})) for name in shown]
            lines.append(f"| {side} | {' | '.join(cells)} | {len(case['samples'][side])} |")
    lines += [f"- {name}: {_number(value)}" for name, value in case["checks"].items()]
    lines += [f"- {side} was not measured: {why}" for side, why in case["skipped"].items()]
    return "\n".join(lines) + "\n"


# Quantities of a sample that the table shows, and their heads.
_SHOWN = {
    "seconds": "s",
    "rollout": "rollout s",
    "logprobs": "log-probs s",
    "update": "update s",
    "tokens_per_second": "tokens/s",
    "peak_bytes": "peak GB",
    "accelerator_peak_bytes": "accelerator peak GB",
}


def _cell(name: str, row: Mapping[str, float], ratios: Mapping[str, float]) -> str:
    if name not in row:
        return ""
    value = row[name] / 1e9 if name.endswith("bytes") else row[name]
    ratio = f" ({ratios[name]:.2f}x)" if name in ratios else ""
    return f"{_number(value)}{ratio}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    names = [
        name
        for name, value in samples[0].items()
        if isinstance(value, int | float) and all(name in sample for sample in samples)
    ]
    return {name: float(median(sample[name] for sample in samples)) for name in names}
