"""Which scenarios a run plays: all sources of the section `scenarios`, split by intent.

Owns the source `builtin:DOMAIN` (the conversations that ship with the package) and what an empty
`intents` means. Thresholds on the data are the line's own affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stateset_agents.core.environment import CONVERSATION_CONFIGS, ConversationEnvironment
from stateset_agents.data.config import DataConfig
from stateset_agents.data.readers import Fetch, locate_scenarios
from stateset_agents.data.schemas import Scenario
from stateset_agents.data.splits import assign_splits, read_intents
from stateset_agents.exceptions import DataError

BUILTIN = "builtin:"


def read_scenario_set(config: DataConfig, *, fetch: Fetch | None = None) -> list[Scenario]:
    """Every scenario, with its split where `config.intents` names a file.

    Raises:
        DataError: every problem of every source and of the file of intents.
    """
    problems: list[str] = []
    builtin, located, intents = [], [], {}
    files = [source for source in config.sources if not source.startswith(BUILTIN)]
    for source in config.sources:
        if source.startswith(BUILTIN):
            try:
                builtin += builtin_scenarios(source)
            except DataError as error:
                problems += error.problems
    if files:
        try:
            located = locate_scenarios(files, fetch=fetch)
        except DataError as error:
            problems += error.problems
    if config.intents and files:
        try:
            intents = read_intents(Path(config.intents))
        except DataError as error:
            problems += [
                f'{problem} (or set scenarios.intents to "": every scenario is trained on)'
                for problem in error.problems
            ]
    if problems:
        raise DataError(problems)
    own = [scenario for _, scenario in located]
    if intents:
        places = {scenario.id: place for place, scenario in located}
        own = assign_splits(own, intents, config.intents, places)
    return [*builtin, *own]


def builtin_scenarios(source: str) -> list[Scenario]:
    """The scenarios of `builtin:customer_service` and its like; each is an intent of its own.

    Raises:
        DataError: there is no such domain.
    """
    domain = source.removeprefix(BUILTIN)
    if domain not in CONVERSATION_CONFIGS:
        known = ", ".join(f"{BUILTIN}{name}" for name in CONVERSATION_CONFIGS)
        raise DataError(f"scenarios.sources: found {source!r}; allowed are {known}, and files")
    rows = CONVERSATION_CONFIGS[domain]["scenarios"]
    return [Scenario.model_validate({"intent": row["id"], **row}) for row in rows]


def to_train_on(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Those of the split `train`, and those that belong to none.

    Raises:
        DataError: there is none.
    """
    return _part(scenarios, "train")


def to_evaluate_on(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Those of the split `heldout`, and those that belong to none.

    Raises:
        DataError: there is none.
    """
    return _part(scenarios, "heldout")


def make_environment(scenarios: Sequence[Scenario]) -> ConversationEnvironment:
    """Scripted users, each of whom says all that the scenario has for them.

    Raises:
        ConfigurationError: there is no scenario.
    """
    longest = max((len(scenario.user_responses) for scenario in scenarios), default=1)
    return ConversationEnvironment(
        [scenario.model_dump() for scenario in scenarios], max_turns=2 * longest
    )


def _part(scenarios: Sequence[Scenario], split: str) -> list[Scenario]:
    chosen = [scenario for scenario in scenarios if scenario.split in (None, split)]
    if not chosen:
        raise DataError(
            f"none of the {len(scenarios)} scenarios has the split {split}; give some intents that "
            'split in the file that scenarios.intents names, or set it to "" for no splits'
        )
    return chosen
