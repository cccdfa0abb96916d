"""What a judge may cost, and what it has cost: one account for every process that shares a folder.

Owns the limits and the ledger. It knows neither HTTP nor rewards.

    <folder>/spending.jsonl         one line for each reservation, and one for what became of it
    <folder>/spending.jsonl.lock    held for as long as a line takes
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stateset_agents.exceptions import RewardError

LEDGER = "spending.jsonl"


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent, and what it costs.

    Attributes:
        max_cost: in the unit of the prices; None: no limit.
        max_requests: that are answered; None: no limit.
        input_price: of a million prompt tokens.
        output_price: of a million completion tokens.
    """

    max_cost: float | None = None
    max_requests: int | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def problems(self) -> list[str]:
        """What is wrong with them, one line each."""
        found = [
            f"{field} is {value}; give a finite number of 0 or more"
            for field in ("max_cost", "max_requests", "input_price", "output_price")
            if (value := getattr(self, field)) is not None
            and not (math.isfinite(value) and value >= 0)
        ]
        if self.max_cost is not None and not (self.input_price or self.output_price):
            found.append(
                f"max_cost is {self.max_cost}, but input_price and output_price are 0, so nothing "
                "would ever cost anything; give the prices of a million tokens, or max_requests"
            )
        return found


class Account:
    """What was spent and what is set aside for requests under way.

    With a folder it is kept in `spending.jsonl` there, so that a run that goes on, or the next one,
    does not begin at nothing, and processes side by side spend from one purse. What a process had
    set aside when it was killed counts as spent: its requests were sent.

    Args:
        limits: what may be spent.
        folder: where it is kept; None: in this object.

    Attributes:
        cost: of the answers so far, in the unit of the prices.
        requests: that were answered so far.

    Raises:
        RewardError: the ledger in the folder cannot be read.
    """

    def __init__(self, limits: Limits, folder: Path | None) -> None:
        self.limits = limits
        self.cost = 0.0
        self.requests = 0
        self._reserved: dict[str, float] = {}
        self._ledger = folder / LEDGER if folder is not None else None
        self._lines_read = 0
        self._bytes_read = 0
        if self._ledger is not None and self._ledger.is_file():
            with self._up_to_date():
                pass

    def reserve(self, cost: float) -> str:
        """Set aside what a request costs at most, before it is sent; the reservation's name.

        Raises:
            RewardError: that would be more than may be spent.
        """
        with self._up_to_date():
            self._refuse_too_much(cost)
            reservation = secrets.token_hex(8)
            self._enter({"id": reservation, "reserved": cost})
        return reservation

    def settle(
        self, reservation: str, cost: float, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Book what a request cost in the end."""
        with self._up_to_date():
            self._enter(
                {
                    "id": reservation,
                    "cost": cost,
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                }
            )

    def give_back(self, reservation: str) -> None:
        """The request was not answered."""
        with self._up_to_date():
            self._enter({"id": reservation, "unanswered": True})

    def _refuse_too_much(self, cost: float) -> None:
        limits = self.limits
        asked = self.requests + len(self._reserved)
        if limits.max_requests is not None and asked >= limits.max_requests:
            raise RewardError(
                f"the judge has been asked {asked} times and max_requests is "
                f"{limits.max_requests}; raise it, or score fewer conversations{self._where()}"
            )
        spent = self.cost + sum(self._reserved.values())
        if limits.max_cost is not None and spent + cost > limits.max_cost:
            raise RewardError(
                f"the judge has spent {self.cost:.4f} of max_cost {limits.max_cost:.4f}, "
                f"{spent - self.cost:.4f} are set aside for requests under way, and the next "
                f"request may cost {cost:.4f}; raise max_cost, or score fewer "
                f"conversations{self._where()}"
            )

    @contextlib.contextmanager
    def _up_to_date(self) -> Iterator[None]:
        """Within it no other process writes, and what the others wrote is known."""
        if self._ledger is None:
            yield
            return
        from filelock import FileLock

        self._ledger.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._ledger}.lock"):
            self._read(self._ledger)
            yield

    def _enter(self, entry: dict[str, Any]) -> None:
        self._take(entry)
        if self._ledger is None:
            return
        with self._ledger.open("ab") as ledger:
            ledger.write(json.dumps(entry).encode() + b"\n")
            self._bytes_read = ledger.tell()
        self._lines_read += 1

    def _read(self, ledger: Path) -> None:
        if not ledger.is_file():
            return
        with ledger.open("rb") as file:
            file.seek(self._bytes_read)
            new = file.read()
        for line in new.decode().splitlines():
            self._lines_read += 1
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RewardError(
                    f"{ledger}, line {self._lines_read}: {line!r} is no entry of the judge's "
                    "account; remove the line"
                ) from error
        self._bytes_read += len(new)

    def _take(self, entry: dict[str, Any]) -> None:
        if "reserved" in entry:
            self._reserved[entry["id"]] = float(entry["reserved"])
            return
        self._reserved.pop(entry.get("id", ""), None)
        if not entry.get("unanswered"):
            self.cost += float(entry["cost"])
            self.requests += 1

    def _where(self) -> str:
        return f" (the account is {self._ledger})" if self._ledger is not None else ""
