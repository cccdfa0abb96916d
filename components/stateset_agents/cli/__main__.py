"""`python -m stateset_agents.cli`."""

from __future__ import annotations

import sys

from stateset_agents.cli.app import main

sys.exit(main())
