"""The table in docs/algorithms.md is the table in the code."""

from __future__ import annotations

from pathlib import Path

from stateset_agents.training.algorithms import ALGORITHMS, AlgorithmRow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"


def described(name: str, row: AlgorithmRow) -> list[str]:
    """A row of the page's table."""
    bounds = row.bounds
    clips = [bounds[bound] for bound in ("clip_left", "clip_right") if bound in bounds]
    beside = []
    if row.resampling_rounds:
        beside.append(f"`resampling_rounds` {row.resampling_rounds}")
    if row.overlong_buffer:
        beside.append(f"`overlong_buffer` {row.overlong_buffer}")
    if "temperature_positive" in bounds:
        beside.append(
            f"temperatures {bounds['temperature_positive']}, {bounds['temperature_negative']}"
        )
    if row.num_iterations > 1:
        beside.append(f"`num_iterations` {row.num_iterations}")
    if row.trust_region:
        beside.append("a KL limit instead of an optimizer")
    if row.on_pairs:
        beside.append("pairs instead of advantages")
    if row.value_clip:
        beside.append(f"`value_clip` {row.value_clip}")
    return [
        f"`{name}`",
        row.loss.replace("_", " "),
        ", ".join("none" if clip is None else f"{clip}" for clip in clips),
        f"`{row.loss_aggregation}`",
        f"`{row.advantage_baseline}`",
        "yes" if row.scale_advantages else "no",
        ", ".join(beside),
    ]


def test_the_page_gives_every_algorithm_with_its_defaults() -> None:
    text = PAGE.read_text()
    table = text[text.index("## The table") : text.index("Papers:")]
    shown = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]

    assert shown == [described(name, row) for name, row in ALGORITHMS.items()]


def test_the_page_says_of_every_algorithm_when_to_use_it() -> None:
    text = PAGE.read_text()
    advice = text[text.index("## When to use which") : text.index("## Losses")]

    assert [name for name in ALGORITHMS if f"**`{name}`**" not in advice] == []
