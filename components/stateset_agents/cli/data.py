"""`stateset-agents data`: bring other formats into ours."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stateset_agents.cli.console import JsonOption, print_json

app = typer.Typer(help="Scenarios and preference pairs.", no_args_is_help=True)


class Format(StrEnum):
    """What can be read; `data.importers` says what each takes."""

    OPENAI_CHAT = "openai-chat"
    OPENAI_PREFERENCES = "openai-preferences"
    SHAREGPT = "sharegpt"
    TRL_PREFERENCES = "trl-preferences"
    CSV = "csv"
    CSV_PREFERENCES = "csv-preferences"


@app.callback()
def _data() -> None:
    """Scenarios and preference pairs."""


@app.command("import")
def import_file(
    form: Annotated[Format, typer.Argument(metavar="FORMAT", help=", ".join(Format))],
    file: Annotated[Path, typer.Argument(help="What to read.")],
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    topic: Annotated[str, typer.Option(help="For rows that name none.")] = "imported",
    intent: Annotated[str, typer.Option(help="For rows that name none.")] = "imported",
    as_json: JsonOption = False,
) -> None:
    """Turn a file of another format into scenarios or pairs; nothing is written if a row is bad."""
    from stateset_agents.data.importers import IMPORTERS, write_records

    records = IMPORTERS[form](file, topic=topic, intent=intent)
    write_records(records, out)
    if as_json:
        print_json({"file": str(file), "format": form.value, "out": str(out), "rows": len(records)})
    else:
        print(f"{out}: {len(records)} rows from {file}")
