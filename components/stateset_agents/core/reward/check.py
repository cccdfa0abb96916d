"""What is wrong with a reward? Tries one on conversations that are known, and tells a person.

Owns the trial conversations and what is found in the scores. It repairs nothing, and what it cannot
see is whether the reward measures what its author wants.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from stateset_agents.core.reward.base import (
    FunctionReward,
    RewardFunction,
    RewardResult,
    Scorable,
    reward_function,
)
from stateset_agents.core.reward.trials import EMPTY, GOOD, TRIALS, UNANSWERED, Trial
from stateset_agents.exceptions import ConfigurationError, RewardError

Level = Literal["error", "warning"]
_REPEATS = 3
_SAME = 1e-6  # of scores that ought to be equal; batches change the last bits of a model's
_LEAST_ASKED = 3  # a difference in fewer answers may be none of the reward's business


@dataclass(frozen=True, slots=True)
class RewardFinding:
    """One thing that is wrong.

    Attributes:
        level: "error": training with it fails or learns nothing; "warning": it may be meant so.
        check: which check found it, a short name.
        message: what was found and what to do.
    """

    level: Level
    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.check}: {self.message}"


@dataclass(frozen=True, slots=True)
class RewardReport:
    """What `check_reward` found; `str()` of it is for a person.

    Attributes:
        reward: its name.
        findings: errors first.
        scores: by trial ("good", "keyword soup", ...), of those that could be scored.
        seconds: of one conversation, the median; NaN if none could be scored.
    """

    reward: str
    findings: tuple[RewardFinding, ...]
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan

    @property
    def ok(self) -> bool:
        """True without an error; warnings may be there."""
        return all(finding.level != "error" for finding in self.findings)

    def __str__(self) -> str:
        count = len(self.findings)
        head = f"reward {self.reward!r}: " + (
            "nothing found" if not count else f"{count} finding{'s' if count > 1 else ''}"
        )
        lines = [head, *(f"  {finding}" for finding in self.findings)]
        if self.scores:
            lines.append(f"  scores ({self.seconds * 1000:.1f} ms a conversation):")
            lines += [f"    {score:8.3f}  {name}" for name, score in self.scores.items()]
        return "\n".join(lines)


async def check_reward(
    reward: object,
    conversations: Sequence[Scorable] = (),
    *,
    slow_seconds: float = 0.5,
) -> RewardReport:
    """Try a reward on a good answer, a stock phrase, keyword soup, an echo, nothing at all and
    more, and say what is wrong with it. It never raises for what the reward does.

    Args:
        reward: a `RewardFunction`; a plain function is told what to do and tried all the same.
        conversations: of your own, as (turns, context): they are tried for errors, range,
            determinism and speed beside the built-in ones.
        slow_seconds: a conversation that takes longer (the median) is called slow.

    Raises:
        ConfigurationError: `slow_seconds` is not above 0.
    """
    if not slow_seconds > 0:
        raise ConfigurationError(f"slow_seconds is {slow_seconds}; give a number above 0")
    trial = _Trial()
    tried = trial.take(reward)
    if tried is not None:
        own = [Trial(f"conversation {n + 1}", *pair) for n, pair in enumerate(conversations)]
        await trial.play(tried, [*TRIALS, *own])
        await trial.play_together(tried)
        trial.compare()
        trial.time(slow_seconds)
    order = {"error": 0, "warning": 1}
    return RewardReport(
        reward=tried.name if tried is not None else repr(reward),
        findings=tuple(sorted(trial.findings, key=lambda finding: order[finding.level])),
        scores={name: result.score for name, result in trial.results.items()},
        seconds=trial.median_seconds,
    )


class _Trial:
    """The state of one check: results by trial, seconds, findings."""

    def __init__(self) -> None:
        self.findings: list[RewardFinding] = []
        self.results: dict[str, RewardResult] = {}
        self.seconds: list[float] = []
        self.played: list[Trial] = []

    @property
    def median_seconds(self) -> float:
        ordered = sorted(self.seconds)
        return ordered[len(ordered) // 2] if ordered else math.nan

    def add(self, level: Level, check: str, message: str) -> None:
        if all(finding.check != check for finding in self.findings):  # the first says it
            self.findings.append(RewardFinding(level, check, message))

    def take(self, reward: object) -> RewardFunction | None:
        """The reward to try, or None where there is none."""
        if isinstance(reward, RewardFunction):
            if not isinstance(reward, FunctionReward) and not inspect.iscoroutinefunction(
                reward.compute_reward
            ):
                self.add(
                    "error",
                    "synchronous",
                    "compute_reward is a plain method, so `await reward.compute_reward(...)` "
                    "fails; write `async def compute_reward`",
                )
            return reward
        if isinstance(reward, type):
            advice = f"it is the class {reward.__name__}; make one: {reward.__name__}()"
        elif callable(reward):
            return self._wrap(reward)
        else:
            advice = f"it is {reward!r}; give a RewardFunction"
        self.add("error", "no reward", advice)
        return None

    def _wrap(self, function: Callable[..., Any]) -> RewardFunction | None:
        name = getattr(function, "__name__", "reward")
        self.add(
            "error",
            "no reward",
            f"{name} is a plain function; put @reward_function() above it, and it is a reward",
        )
        try:
            return reward_function()(function)
        except ConfigurationError as error:
            self.add("error", "signature", str(error))
            return None

    async def play(self, reward: RewardFunction, trials: Sequence[Trial]) -> None:
        """Each conversation alone, three times: what it raises, gives, changes, and how long."""
        for one in trials:
            scores = []
            for _ in range(_REPEATS):
                result = await self._score(reward, one)
                if result is None:
                    break
                scores.append(result.score)
            if len(scores) < _REPEATS:
                continue
            self.played.append(one)
            if max(scores) - min(scores) > _SAME:
                self.add(
                    "warning",
                    "not deterministic",
                    f"the same conversation ({one.name}) got {_listed(scores)}; the noise is "
                    "learned from like a difference in quality. Seed it, or cache what it gives",
                )

    async def _score(self, reward: RewardFunction, one: Trial) -> RewardResult | None:
        turns, context = copy.deepcopy(list(one.turns)), copy.deepcopy(one.context)
        started = time.perf_counter()
        try:
            result = (await reward.compute_rewards([(turns, context)]))[0]
        except Exception as error:  # this is what the check is for
            self._tell_error(one, error)
            return None
        self.seconds.append(time.perf_counter() - started)
        if turns != list(one.turns):
            self.add(
                "error",
                "changes the conversation",
                "it changes the turns that it is given, which training uses afterwards; copy them",
            )
        if not self._is_sound(one, result):
            return None
        self.results.setdefault(one.name, result)
        return result

    def _tell_error(self, one: Trial, error: Exception) -> None:
        text = str(error) if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"
        if " gave " in text and isinstance(error, RewardError) and error.__cause__ is None:
            self.add("error", "wrong return type", text)
        elif one.name == EMPTY:
            self.add("error", "raises on an empty conversation", f"{text}. Give 0.0 for no turns")
        elif one.name == UNANSWERED:
            self.add("error", "raises without an answer", f"{text}. Give 0.0 for no answer")
        else:
            self.add("error", "raises", f"{text} (conversation: {one.name})")

    def _is_sound(self, one: Trial, result: RewardResult) -> bool:
        numbers: list[object] = [result.score, *result.breakdown.values()]
        numbers += result.turn_scores or []
        if not all(isinstance(number, Real) for number in numbers):
            odd = next(number for number in numbers if not isinstance(number, Real))
            self.add("error", "wrong return type", f"a score is {odd!r}; give a number")
            return False
        if not all(math.isfinite(float(number)) for number in numbers):  # type: ignore[arg-type]
            self.add(
                "error",
                "not finite",
                f"{one.name}: a score is NaN or infinite; such a conversation is left out of "
                "training. Look for a division by a length that can be 0",
            )
            return False
        if not 0 <= result.score <= 1:
            self.add(
                "warning",
                "out of range",
                f"{one.name} got {result.score:g}; a composite's weights, gates and reward "
                "ceilings expect [0, 1]. Scale it, or use MultiObjectiveReward with a range",
            )
        answers = sum(turn.role == "assistant" for turn in one.turns)
        if result.turn_scores is not None and len(result.turn_scores) != answers:
            self.add(
                "error",
                "turn scores",
                f"{one.name}: {len(result.turn_scores)} turn_scores for {answers} assistant "
                "turns; give one each, or None",
            )
        return True

    async def play_together(self, reward: RewardFunction) -> None:
        """All in one call: as many results, and the same."""
        pairs = [(copy.deepcopy(list(one.turns)), dict(one.context)) for one in self.played]
        try:
            together = await reward.compute_rewards(pairs)
        except Exception as error:  # this is what the check is for
            self.add("error", "raises in a batch", f"{type(error).__name__}: {error}")
            return
        if len(together) != len(pairs):
            self.add(
                "error",
                "batch",
                f"compute_rewards gave {len(together)} results for {len(pairs)} conversations; "
                "one each, in their order",
            )
            return
        if any(finding.check == "not deterministic" for finding in self.findings):
            return
        for one, result in zip(self.played, together, strict=True):
            alone = self.results[one.name].score
            if not math.isclose(result.score, alone, rel_tol=1e-3, abs_tol=1e-3):
                self.add(
                    "warning",
                    "batch",
                    f"{one.name} got {result.score:g} among others and {alone:g} alone; a score "
                    "should not depend on what else is scored",
                )

    def compare(self) -> None:
        """What the scores say: does the answer matter, and what gets as much as a good one?"""
        answered = [one for one in TRIALS if one.probe and one.name in self.results]
        scores = [self.results[one.name].score for one in answered]
        if len(scores) >= _LEAST_ASKED and max(scores) - min(scores) <= _SAME:
            self.add(
                "error",
                "ignores the answer",
                f"{len(scores)} different answers to one question all got {scores[0]:g}; a group "
                "without differences teaches nothing. Look at the turns with role 'assistant'",
            )
            return
        good = self.results.get(GOOD)
        if good is None:
            return
        for one in answered:
            score = self.results[one.name].score
            if one.warns and score >= good.score + one.margin * abs(good.score):
                self.add(
                    "warning",
                    one.warns,
                    f"{one.shown!r} got {score:.3f}, a good answer {good.score:.3f}; a policy "
                    "finds that out. Fine for a gate that looks at one fault only",
                )

    def time(self, slow_seconds: float) -> None:
        """Slow is what takes longer than that for the median conversation."""
        if self.median_seconds > slow_seconds:
            self.add(
                "warning",
                "slow",
                f"{self.median_seconds:.2f} s a conversation; a step of 256 conversations takes "
                f"{256 * self.median_seconds:.0f} s. Override compute_rewards and score a batch, "
                "or run requests side by side with asyncio.gather",
            )


def _listed(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.4g}" for score in scores)
