"""Tables, what is expected of them, and Great Expectations' verdict with its Data Docs.

Owns the use of Great Expectations; which expectations a table has is the step's business. Nothing
goes over the network: the context is in memory, and telemetry is off before the import.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WORST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Expectation:
    """One expectation of Great Expectations by its class name; `meaning` is for people."""

    kind: str
    meaning: str
    arguments: dict[str, Any]
    is_critical: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to validate. Every row has `place` (file and line) and `id`."""

    name: str
    rows: pd.DataFrame
    expectations: Sequence[Expectation]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation's outcome; `problem` is one line with the rows at fault, "" if it was met."""

    table: str
    meaning: str
    is_critical: bool
    problem: str

    @property
    def is_met(self) -> bool:
        """True when nothing was wrong."""
        return not self.problem


def validate(tables: Sequence[Table], docs: Path) -> list[Verdict]:
    """Run every table's suite and write the Data Docs of all into the folder `docs`."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # this module of theirs sets its own level, to tell where its temporary folder is
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    _add_site(context, docs)
    source = context.data_sources.add_pandas("data")
    verdicts: list[Verdict] = []
    for table in tables:
        batch = source.add_dataframe_asset(table.name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name=table.name))
        for expectation in table.expectations:
            suite.add_expectation(_build(expectation))
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=table.name, data=batch, suite=suite)
        )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=table.name,
                validation_definitions=[definition],
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": ["place", "id"],
                },
            )
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": table.rows})
        for result in outcome.run_results.values():
            verdicts += [_judge(table, one) for one in result.results]
    context.build_data_docs(site_names=["data"])  # once: each time it compiles every template
    return verdicts


def _add_site(context: Any, docs: Path) -> None:
    # the site that every context starts with lies in a temporary folder that nobody looks at
    context.delete_data_docs_site("local_site")
    context.add_data_docs_site(
        site_name="data",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs.resolve()),
            },
        },
    )


def _build(expectation: Expectation) -> Any:
    from great_expectations import expectations as gxe

    return getattr(gxe, expectation.kind)(
        **expectation.arguments,
        severity="critical" if expectation.is_critical else "warning",
        meta={"meaning": expectation.meaning},
        notes=expectation.meaning,
    )


def _judge(table: Table, result: Any) -> Verdict:
    config = result.expectation_config
    meaning = config.meta["meaning"]
    is_critical = str(config.severity).lower().endswith("critical")
    if result.success:
        return Verdict(table.name, meaning, is_critical, "")
    if result.exception_info and result.exception_info.get("raised_exception"):
        return Verdict(table.name, meaning, is_critical, f"{meaning}: {result.exception_info}")
    details = result.result
    rows = details.get("unexpected_index_list")
    if rows is None:
        found = details.get("observed_value")
        shown = f"{found:.3g}" if isinstance(found, float) else found
        return Verdict(table.name, meaning, is_critical, f"{table.name}: {meaning}; found {shown}")
    column = config.kwargs["column"]
    lines = [f"{row['place']}: {row['id']}: {column} is {row[column]}" for row in rows]
    more = [f"and {len(lines) - WORST_ROWS} more"] if len(lines) > WORST_ROWS else []
    text = "\n".join(f"  {line}" for line in [*lines[:WORST_ROWS], *more])
    problem = f"{table.name}: {meaning}; {len(lines)} of {len(table.rows)} rows fail:\n{text}"
    return Verdict(table.name, meaning, is_critical, problem)


def temporary_folder(beside: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the same disk as `beside`, so that it can be renamed into its place."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=beside.parent, prefix=f".{beside.name}.")
