"""The base of all rewards, and the decorator that makes one from a function."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError, RewardError, StateSetError


@dataclass(slots=True)
class RewardResult:
    """A score in [0, 1] unless the reward's docstring says otherwise.

    `breakdown` maps names to numbers, `turn_scores` has one value per assistant turn if the reward
    can tell turns apart.
    """

    score: float
    breakdown: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    turn_scores: list[float] | None = None


# A conversation to score: its turns, and what is known about it. Keys of the context that this
# package sets: "scenario" (the whole scenario as a dict), "rubric" (core.rubric.Rubric or None),
# "truncated" (list[bool], one per assistant turn: the answer hit max_new_tokens),
# "group" (list of the other conversations' turns in the same group, may be absent).
# A user's own key that this package reads: "truth" (see `CorrectnessReward`).
Scorable = tuple[Sequence[ConversationTurn], dict[str, Any]]

RewardCallable = Callable[..., "RewardResult | float | Awaitable[RewardResult | float]"]


class RewardFunction(ABC):
    """Base of all rewards. Subclass it and write `compute_reward`.

    Args:
        weight: what a `CompositeReward` multiplies its score with; 0 or more, finite.
        name: its key in a composite's breakdown; the class name by default.

    Raises:
        ConfigurationError: the weight is negative or not finite.
    """

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        self.name = name or type(self).__name__
        given: Any = weight
        if (
            isinstance(given, bool)
            or not isinstance(given, Real)
            or not 0 <= float(given) < math.inf
        ):
            raise ConfigurationError(
                f"reward {self.name!r} has weight {weight!r}; give a finite number of 0 or more"
            )
        self.weight = weight

    @abstractmethod
    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult | float:
        """Score one conversation."""

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many, one by one; override where a batch is cheaper. A number that is not finite is
        handed on: what it means, the caller decides (`rollout.scoring`).

        Raises:
            RewardError: this reward raised, or gave something that is not a number. It is named,
                with the position of the conversation.
        """
        results = []
        for position, (turns, context) in enumerate(conversations):
            where = f"conversation {position + 1} of {len(conversations)}"
            try:
                given: Any = self.compute_reward(turns, context)
                if inspect.isawaitable(given):
                    given = await given
            except StateSetError:
                raise
            except Exception as error:
                raise RewardError(
                    f"reward {self.name!r} raised {type(error).__name__} on {where}: {error}"
                ) from error
            results.append(self._checked(given, where))
        return results

    def _checked(self, given: object, where: str) -> RewardResult:
        if isinstance(given, RewardResult):
            return given
        if isinstance(given, Real):  # NumPy's numbers too; a bool is an int, and a fair 0 or 1
            return RewardResult(score=float(given))
        raise RewardError(
            f"reward {self.name!r} gave {given!r} for {where}; "
            "return a finite number or a RewardResult with a finite score"
        )


def problem_of_reward(given: object, where: str) -> str | None:
    """Why this is no reward and what to do, None where it is one; `where` names it."""
    if isinstance(given, RewardFunction):
        return None
    if isinstance(given, type):
        name = given.__name__
        made = f"make one: {name}()" if issubclass(given, RewardFunction) else "give a reward"
        return f"{where} is the class {name}; {made}"
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return f"{where} is the plain function {name}; put @reward_function() above it"
    return f"{where} is {given!r:.80}; give a RewardFunction, such as HelpfulnessReward()"


class FunctionReward(RewardFunction):
    """A plain function as a reward; `reward_function` makes it."""

    def __init__(self, function: RewardCallable, weight: float, name: str) -> None:
        super().__init__(weight=weight, name=name)
        self._function = function
        self.__doc__ = function.__doc__
        self._check_signature()

    def __call__(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult | float | Awaitable[RewardResult | float]:
        """Call the function as it was written; one that is asynchronous is to be awaited."""
        return self._function(turns, context=context)

    def __getstate__(self) -> dict[str, Any]:
        """The decorator has taken the function's name in its module, so pickle would not find it
        there: what travels is that name.
        """
        function: Any = self._function
        module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
        there = getattr(sys.modules.get(module), name, None)
        hidden = isinstance(there, FunctionReward) and there._function is function
        return {**self.__dict__, "_function": (module, name) if hidden else function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the function from the reward that has its name."""
        if isinstance(state["_function"], tuple):
            module, name = state["_function"]
            state["_function"] = getattr(importlib.import_module(module), name)._function
        self.__dict__.update(state)

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult | float:
        """Call the function, and wait for it if it is asynchronous."""
        given = self._function(turns, context=context)
        return await given if inspect.isawaitable(given) else given

    def _check_signature(self) -> None:
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # some callables written in C tell nothing
            return
        try:
            signature.bind([], context=None)
        except TypeError as error:
            raise ConfigurationError(
                f"the reward function {self.name!r} takes {signature}; it is called with "
                f"(turns, context=...): {error}. Write `def {self.name}(turns, context=None)`"
            ) from error


def reward_function(
    weight: float = 1.0, name: str | None = None
) -> Callable[[RewardCallable], FunctionReward]:
    """Make a reward from a function `(turns, context=None)`, synchronous or asynchronous.

    The function returns a number or a `RewardResult`. `name` is the function's own by default.

    Raises:
        ConfigurationError: used without parentheses, a weight that is negative or not finite, or a
            function that cannot be called with (turns, context=...).
    """
    if callable(weight):
        raise ConfigurationError(
            "reward_function was used without parentheses; write @reward_function() or "
            "@reward_function(weight=0.5)"
        )

    def wrap(function: RewardCallable) -> FunctionReward:
        return FunctionReward(
            function, weight, name or str(getattr(function, "__name__", "reward"))
        )

    return wrap
