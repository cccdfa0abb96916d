"""Step: check scenarios and preference pairs, and split them.

Reads the section `scenarios` and the sources it names. Writes data/validated (one file a split and
a part of the preferences, so that a change of one leaves the steps that read another alone) and
data/reports/data (Data Docs, summary.json). Where something is wrong, data/validated stays as it
was, and the report shows what.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from stateset_agents.data.config import DataConfig
from stateset_agents.data.quality import distinct_n, find_nearest, find_unstated_facts
from stateset_agents.data.readers import locate_preferences, locate_scenarios
from stateset_agents.data.schemas import PreferencePair, Scenario
from stateset_agents.data.splits import (
    SPLITS,
    assign_splits,
    check_preferences_apart,
    read_intents,
)
from stateset_agents.exceptions import DataError
from stateset_agents.run_config import RunConfig
from stateset_agents.tracking.artifact_store import fetch_data
from stateset_agents.tracking.whole_folder import take_place
from tasks import entry, paths
from tasks.expectations import Expectation, Table, Verdict, temporary_folder, validate
from tasks.folders import naming

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger("tasks.validate_scenarios")  # also when it runs as __main__

Located = list[tuple[str, Scenario]]
LocatedPairs = list[tuple[str, PreferencePair]]


def run(config: RunConfig) -> None:
    """Read, check, report, and put the parts in place, or fail and put none."""
    settings = config.scenarios
    with naming(paths.VALIDATED), temporary_folder(paths.VALIDATED) as work:
        scenarios, learned_from, measured_with = _read_all(settings, Path(work))
        docs = Path(work) / "report"
        tables = [
            Table("scenarios", _scenario_rows(scenarios), _scenario_expectations(settings)),
            _pair_table("preferences", learned_from, settings, settings.min_preferences),
            _pair_table(
                "heldout_preferences", measured_with, settings, settings.min_heldout_preferences
            ),
        ]
        verdicts = validate(tables, docs)
        summary = _summarise(scenarios, learned_from, measured_with, verdicts)
        (docs / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        paths.DATA_REPORT.parent.mkdir(parents=True, exist_ok=True)
        take_place(docs, paths.DATA_REPORT)
        _stop_if_critical(verdicts)
        _write_parts(Path(work), scenarios, learned_from, measured_with)
    _LOG.info(
        "%d scenarios over %d intents (%s), %d pairs to learn from and %d to measure with; "
        "report: %s",
        len(scenarios),
        summary["intents"],
        ", ".join(f"{count} {split}" for split, count in summary["scenarios_by_split"].items()),
        len(learned_from),
        len(measured_with),
        paths.DATA_REPORT / "index.html",
    )


def _read_all(settings: DataConfig, work: Path) -> tuple[Located, LocatedPairs, LocatedPairs]:
    """Read every source and say everything that is wrong with any of them at once."""
    problems: list[str] = []

    def fetch(address: str) -> Path:
        return fetch_data(address, work)

    scenarios: Located = []
    pairs: list[LocatedPairs] = [[], []]
    intents = {}
    with _collect(problems):
        intents = read_intents(Path(settings.intents))
    with _collect(problems):
        scenarios = locate_scenarios(settings.sources, fetch=fetch)
    for index, sources in enumerate((settings.preferences, settings.heldout_preferences)):
        with _collect(problems):
            pairs[index] = locate_preferences(sources, fetch=fetch)
    if intents:
        with _collect(problems):
            places = {scenario.id: place for place, scenario in scenarios}
            split = assign_splits((one for _, one in scenarios), intents, settings.intents, places)
            scenarios = [(places[one.id], one) for one in split]
        with _collect(problems):
            learned_from, measured_with = ([pair for _, pair in part] for part in pairs)
            check_preferences_apart(learned_from, measured_with, intents, settings.intents)
    if problems:
        raise DataError(problems)
    return scenarios, pairs[0], pairs[1]


@contextlib.contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        problems += error.problems


def _scenario_rows(scenarios: Located) -> pd.DataFrame:
    import pandas as pd

    nearest = find_nearest([scenario for _, scenario in scenarios])
    return pd.DataFrame(
        {
            "place": place,
            "id": one.id,
            "topic": one.topic,
            "intent": one.intent,
            "split": one.split,
            "heldout_intent": one.intent if one.split == "heldout" else None,
            "turns": len(one.user_responses),
            "longest_turn_words": max(len(turn.split()) for turn in one.user_responses),
            "context_words": len(one.context.split()),
            "has_rubric": one.rubric is not None,
            "unstated_facts": "; ".join(find_unstated_facts(one)),
            "similarity": near.similarity,
            "nearest": near.scenario_id,
        }
        for (place, one), near in zip(scenarios, nearest, strict=True)
    )


def _scenario_expectations(settings: DataConfig) -> list[Expectation]:
    def between(column: str, meaning: str, low: Any, high: Any) -> Expectation:
        arguments = {"column": column, "min_value": low, "max_value": high}
        return Expectation("ExpectColumnValuesToBeBetween", meaning, arguments)

    def at_least(column: str, meaning: str, low: int) -> Expectation:
        arguments = {"column": column, "min_value": low}
        return Expectation("ExpectColumnUniqueValueCountToBeBetween", meaning, arguments)

    expected = [
        Expectation(
            "ExpectTableRowCountToBeBetween",
            f"at least {settings.min_scenarios} scenarios",
            {"min_value": settings.min_scenarios},
        ),
        at_least("intent", f"at least {settings.min_intents} intents", settings.min_intents),
        at_least(
            "heldout_intent",
            f"at least {settings.min_heldout_intents} intents held out",
            settings.min_heldout_intents,
        ),
        Expectation("ExpectColumnValuesToBeUnique", "ids occur once", {"column": "id"}),
        Expectation(
            "ExpectColumnDistinctValuesToEqualSet",
            "every split has scenarios",
            {"column": "split", "value_set": list(SPLITS)},
        ),
        between(
            "turns",
            f"{settings.min_turns} to {settings.max_turns} turns",
            settings.min_turns,
            settings.max_turns,
        ),
        between(
            "longest_turn_words",
            f"user turns of at most {settings.max_turn_words} words",
            1,
            settings.max_turn_words,
        ),
        between(
            "context_words",
            f"contexts of at most {settings.max_context_words} words",
            0,
            settings.max_context_words,
        ),
        between(
            "similarity",
            f"no two scenarios more alike than {settings.max_similarity}",
            0,
            settings.max_similarity,
        ),
    ]
    return expected + (_rubric_expectations() if settings.require_rubric else [])


def _rubric_expectations() -> list[Expectation]:
    return [
        Expectation(
            "ExpectColumnValuesToBeInSet",
            "every scenario has a rubric",
            {"column": "has_rubric", "value_set": [True]},
        ),
        Expectation(
            "ExpectColumnValuesToBeInSet",
            "every fact that a rubric asks for is stated in the context",
            {"column": "unstated_facts", "value_set": [""]},
        ),
    ]


def _pair_table(name: str, pairs: LocatedPairs, settings: DataConfig, fewest: int) -> Table:
    import pandas as pd

    rows = pd.DataFrame(
        {
            "place": place,
            "id": pair.id,
            "intent": pair.intent,
            "prompt_messages": len(pair.prompt),
            "chosen_is_longer": int(_length(pair.chosen) > _length(pair.rejected)),
            "last_user_turn": pair.prompt[-1].content,
            "answers": f"{pair.chosen} {pair.rejected} {pair.prompt[-1].content}",
        }
        for place, pair in pairs
    )
    low, high = settings.chosen_longer_share
    return Table(
        name,
        rows,
        [
            Expectation(
                "ExpectTableRowCountToBeBetween", f"at least {fewest} pairs", {"min_value": fewest}
            ),
            Expectation("ExpectColumnValuesToBeUnique", "ids occur once", {"column": "id"}),
            Expectation(
                "ExpectColumnValuesToBeUnique", "no pair occurs twice", {"column": "answers"}
            ),
            Expectation(
                "ExpectColumnMeanToBeBetween",
                f"the chosen answer is the longer one in {low:.0%} to {high:.0%} of pairs",
                {"column": "chosen_is_longer", "min_value": low, "max_value": high},
            ),
            Expectation(
                "ExpectColumnValuesToNotBeNull",
                "every pair names its intent",
                {"column": "intent"},
                is_critical=False,
            ),
        ],
    )


def _length(messages: Sequence[Any]) -> int:
    return sum(len(message.content) for message in messages)


def _summarise(
    scenarios: Located,
    learned_from: LocatedPairs,
    measured_with: LocatedPairs,
    verdicts: list[Verdict],
) -> dict[str, Any]:
    turns = [turn for _, one in scenarios for turn in one.user_responses]
    nearest = find_nearest([one for _, one in scenarios])
    split_of = {one.intent: one.split for _, one in scenarios}
    return {
        "valid": all(one.is_met for one in verdicts if one.is_critical),
        "scenarios": len(scenarios),
        "intents": len(split_of),
        "scenarios_by_split": _counts(str(one.split) for _, one in scenarios),
        "intents_by_split": _counts(str(split) for split in split_of.values()),
        "scenarios_by_topic": _counts(one.topic for _, one in scenarios),
        "user_turns": len(turns),
        "words_per_user_turn": round(sum(len(turn.split()) for turn in turns) / len(turns), 2),
        "distinct_2": round(distinct_n(turns, 2), 4),
        "distinct_3": round(distinct_n(turns, 3), 4),
        "highest_similarity": round(max(one.similarity for one in nearest), 4),
        "preferences": len(learned_from),
        "heldout_preferences": len(measured_with),
        "flaws": _counts(str(pair.metadata.get("flaw", "unknown")) for _, pair in learned_from),
        "unmet": [one.problem for one in verdicts if not one.is_met],
    }


def _counts(values: Iterator[str] | Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _stop_if_critical(verdicts: list[Verdict]) -> None:
    for one in verdicts:
        if not one.is_met and not one.is_critical:
            _LOG.warning("%s", one.problem)
    failed = [one.problem for one in verdicts if not one.is_met and one.is_critical]
    if failed:
        raise DataError([*failed, f"Report: {paths.DATA_REPORT / 'index.html'}"])


def _write_parts(
    work: Path, scenarios: Located, learned_from: LocatedPairs, measured_with: LocatedPairs
) -> None:
    """Write every part beside its place first; only when all are whole are they renamed."""
    parts: dict[str, list[BaseModel]] = {
        f"{split}.jsonl": [one for _, one in scenarios if one.split == split] for split in SPLITS
    }
    parts["preferences_train.jsonl"] = [pair for _, pair in learned_from]
    parts["preferences_heldout.jsonl"] = [pair for _, pair in measured_with]
    for name, records in parts.items():
        with (work / name).open("w", encoding="utf-8") as file:
            for record in records:
                values = record.model_dump(mode="json", exclude_none=True)
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    paths.VALIDATED.mkdir(parents=True, exist_ok=True)
    for name in parts:
        os.replace(work / name, paths.VALIDATED / name)


if __name__ == "__main__":
    entry.main(run)
