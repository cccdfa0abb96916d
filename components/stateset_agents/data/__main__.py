"""Turn a file of another format into ours: `python -m stateset_agents.data FORMAT FILE OUT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stateset_agents.data.importers import IMPORTERS, write_records
from stateset_agents.exceptions import DataError


def main(arguments: list[str] | None = None) -> int:
    """Import one file; 0, or 1 after a message that lists every problem."""
    parser = argparse.ArgumentParser(prog="python -m stateset_agents.data", description=__doc__)
    parser.add_argument("format", choices=sorted(IMPORTERS))
    parser.add_argument("file", type=Path, help="what to read")
    parser.add_argument("out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--topic", default="imported", help="default: %(default)s")
    parser.add_argument("--intent", default="imported", help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        records = IMPORTERS[given.format](given.file, topic=given.topic, intent=given.intent)
        write_records(records, given.out)
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{given.out}: {len(records)} rows from {given.file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
