"""`python -m stateset_agents.rewards FILE`: how the shipped rewards agree with rated turns."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable

from stateset_agents.core.embedding import embeddings_installed
from stateset_agents.core.reward import (
    ConcisenessReward,
    CorrectnessReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFunction,
    SafetyReward,
    TaskCompletionReward,
)
from stateset_agents.exceptions import DataError
from stateset_agents.rewards import (
    CustomerServiceReward,
    SalesAssistantReward,
    SimilarityAwareReward,
    TechnicalSupportReward,
)
from stateset_agents.rewards.agreement import (
    Agreement,
    agreement,
    length_agreement,
    read_rated_turns,
)

REWARDS: dict[str, Callable[[], RewardFunction]] = {
    "helpfulness, lexical": lambda: HelpfulnessReward(addressing="lexical"),
    "helpfulness, embeddings": lambda: HelpfulnessReward(addressing="embeddings"),
    "safety": SafetyReward,
    "correctness": CorrectnessReward,
    "conciseness": ConcisenessReward,
    "engagement": EngagementReward,
    "task completion": TaskCompletionReward,
    "customer service": CustomerServiceReward,
    "technical support": TechnicalSupportReward,
    "sales assistant": SalesAssistantReward,
    "similarity": SimilarityAwareReward,
}


def main(arguments: list[str] | None = None) -> int:
    """Print a table, each reward's AUC on the turns of a file; 1 where it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m stateset_agents.rewards", description=__doc__)
    parser.add_argument("file", help="JSON lines (.gz or not) with prompt, completion and label")
    try:
        rated = read_rated_turns(parser.parse_args(arguments).file)
        length = length_agreement(rated)
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(
        f"{length.num_good} good and {length.num_bad} bad turns\n"
        "| reward | AUC | 95 % | mean of good | mean of bad |\n|---|---|---|---|---|\n"
    )
    for name, make in REWARDS.items():
        if name != "helpfulness, embeddings" or embeddings_installed():
            sys.stdout.write(_row(name, asyncio.run(agreement(make(), rated))))
            sys.stdout.flush()
    sys.stdout.write(_row("(number of words)", length))
    return 0


def _row(name: str, found: Agreement) -> str:
    return (
        f"| {name} | {found.auc:.3f} | {found.low:.3f} to {found.high:.3f} | "
        f"{found.mean_good:.3f} | {found.mean_bad:.3f} |\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
