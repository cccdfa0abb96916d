"""How long a fresh process takes to import the package, and to show the command's help."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results import Case
from benchmarks.run import Run

SAYS = "Seconds of a fresh process, the interpreter's own start included."


def run(settings: Run) -> list[Case]:
    """Measure both, and an interpreter that does nothing, in alternation."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import stateset_agents": [sys.executable, "-c", "import stateset_agents"],
        "stateset-agents --help": [str(Path(sys.executable).parent / "stateset-agents"), "--help"],
    }
    case = Case("fresh process")  # the names say the commands; paths are the machine's
    for round_number in range(1 + (1 if settings.quick else 15)):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - started
            if round_number:
                case.samples.setdefault(name, []).append({"seconds": seconds})
    return [case]
