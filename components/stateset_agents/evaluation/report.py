"""The evaluation as one HTML page: numbers first, then the conversations side by side.

Owns what the page says and in which order. The page has no external resource: it opens from a mail,
an artifact store or a disk. It does not know files; the task writes what `render_report` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from stateset_agents.evaluation.compare import Interval
from stateset_agents.evaluation.results import EvaluatedConversation, PolicyName
from stateset_agents.evaluation.summary import Band, Evaluation, distribution_rows, intent_rows

# Conversations shown open at the top, of the largest losses and of the largest gains.
_EXTREMES = 8

_TITLES = {
    "reward": "Reward",
    "log_likelihood": "Log-likelihood under the base model (nats a token)",
    "answer_tokens": "Length (tokens an answer)",
    "truncated": "Cut off by the token limit (share of answers)",
    "distinct_1": "Distinct words",
    "distinct_2": "Distinct pairs of words",
    "identical_answers": "Answers also given in another scenario",
    "self_overlap": "Four-word phrases also said in another scenario",
    "repeated_phrases": "Four-word phrases said again in the same conversation",
}

# Measures that are not scores: more of them is neither better nor worse.
_NEUTRAL = frozenset({"log_likelihood", "answer_tokens", "truncated"})


@dataclass(frozen=True, slots=True)
class _Axis:
    """Places numbers between the ends of a drawn scale, in per cent of its width."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> _Axis:
        low, high = min(0.0, *values), max(0.0, *values)
        margin = 0.05 * (high - low) or 0.05
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def render_report(evaluation: Evaluation, *, conversations: int = 0, created: str = "") -> str:
    """The page as HTML.

    Args:
        evaluation: what was found.
        conversations: how many to show side by side, half of them the largest losses and half the
            largest gains; 0 = all.
        created: date and time to show, as text.
    """
    environment = Environment(
        loader=PackageLoader("stateset_agents.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["signed"] = _signed
    shown = _conversations(evaluation, conversations)
    page: str = environment.get_template("report.html.j2").render(
        created=created,
        confidence=f"{100 * evaluation.confidence:g}%",
        verdict=_verdict(evaluation),
        stands_in=evaluation.base_stands_in,
        champion_version=evaluation.champion_version,
        policies=[
            {"name": name, "title": policy.title, "version": policy.version}
            for name, policy in evaluation.policies.items()
        ],
        counts=evaluation.counts(),
        bands=[_band(band) for band in evaluation.bands],
        measures=_measures(evaluation),
        varied=_varied(evaluation),
        opponents=_opponents(evaluation),
        intents=_intents(evaluation),
        distribution=_distribution(evaluation),
        shown=shown,
    )
    return page


def _number(value: float | None) -> str:
    """Three digits behind the point, a dash for what is not there."""
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001 (a dash is meant)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")  # noqa: RUF001


def _verdict(evaluation: Evaluation) -> dict[str, str]:
    """One sentence on the reward, and how it is to be read: good, bad or open."""
    difference = evaluation.versus_champion.differences["reward"]
    other = "base model" if evaluation.base_stands_in else "champion"
    direction = "above" if difference.mean >= 0 else "below"
    sentence = f"The challenger's reward is {abs(difference.mean):.3f} {direction} the {other}'s"
    if difference.low is None:
        return {"kind": "open", "text": f"{sentence}; one scenario is too few for an interval."}
    ends = f"{_signed(difference.low)} to {_signed(difference.high)}"
    sure = f"{100 * evaluation.confidence:g}% interval {ends}"
    if not difference.excludes_zero:
        return {"kind": "open", "text": f"{sentence}, which may be chance ({sure})."}
    outside = [band.title for band in evaluation.bands if not band.inside]
    if difference.mean < 0:
        return {"kind": "bad", "text": f"{sentence} ({sure})."}
    if outside:
        text = f"{sentence} ({sure}), but it is out of band: {', '.join(outside)}."
        return {"kind": "bad", "text": text}
    return {"kind": "good", "text": f"{sentence} ({sure})."}


def _band(band: Band) -> dict[str, Any]:
    if band.low is None:
        allowed = f"at most {_number(band.high)}"
    elif band.high is None:
        allowed = f"at least {_number(band.low)}"
    else:
        allowed = f"{_number(band.low)} to {_number(band.high)}"
    return {
        "name": band.title,
        "description": band.description,
        "value": band.value,
        "allowed": allowed,
        "inside": band.inside,
    }


def _title(measure: str) -> str:
    return _TITLES.get(measure, measure.replace("_", " ").capitalize())


def _measures(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each measure: every policy's mean, and the difference to the champion drawn."""
    differences = evaluation.versus_champion.differences
    axis = _Axis.around(
        [
            end
            for name, interval in differences.items()
            if name not in _NEUTRAL
            for end in (interval.low, interval.high, interval.mean)
            if end is not None
        ]
    )
    return [
        {
            "title": _title(name),
            "key": name,
            "values": [evaluation.means[policy].get(name) for policy in evaluation.policies],
            "difference": interval,
            "tone": "open" if name in _NEUTRAL else _tone(interval),
            "drawn": None if name in _NEUTRAL else _drawn(interval, axis),
        }
        for name, interval in differences.items()
    ]


def _tone(interval: Interval) -> str:
    if not interval.excludes_zero:
        return "open"
    return "good" if interval.mean > 0 else "bad"


def _drawn(interval: Interval, axis: _Axis) -> dict[str, float]:
    """An interval as places in per cent: the line's left end and width, the mean, the zero."""
    low = interval.mean if interval.low is None else interval.low
    high = interval.mean if interval.high is None else interval.high
    left, right = axis.place(low), axis.place(high)
    return {
        "left": left,
        "width": max(0.4, round(right - left, 2)),
        "mean": axis.place(interval.mean),
        "zero": axis.place(0.0),
    }


def _varied(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the table of diversity and cost: title and a value for each policy."""
    tables = {name: found.as_dict() for name, found in evaluation.diversity.items()}
    rows = []
    for measure in tables["challenger"]:
        values = [f"{table[measure]:.3f}" for table in tables.values()]
        rows.append({"title": _title(measure), "values": values})
    played = evaluation.policies.values()
    rows.append(
        {
            "title": "Milliseconds a turn, all conversations at once",
            "values": [f"{policy.milliseconds_per_turn:.0f}" for policy in played],
        }
    )
    rows.append(
        {"title": "Failed conversations", "values": [str(policy.failed_count) for policy in played]}
    )
    return rows


def _opponents(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The challenger against each other policy: reward with both intervals, wins, ties, losses."""
    rows = [("champion", evaluation.versus_champion), ("base", evaluation.versus_base)]
    return [
        {
            "name": name,
            "comparison": comparison,
            "reward": comparison.differences["reward"],
            "wide": comparison.reward_by_other_cluster,
        }
        for name, comparison in (rows[1:] if evaluation.base_stands_in else rows)
    ]


def _intents(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each intent, the worst difference first."""
    rewards = {row["intent"]: row for row in intent_rows(evaluation)}
    by_intent = evaluation.versus_champion.by_intent
    found = {intent: measures["reward"] for intent, measures in by_intent.items()}
    axis = _Axis.around(
        [
            end
            for interval in found.values()
            for end in (interval.low, interval.high, interval.mean)
            if end is not None
        ]
    )
    return [
        {
            "intent": intent,
            "values": [rewards[intent][policy] for policy in evaluation.policies],
            "difference": interval,
            "tone": _tone(interval),
            "drawn": _drawn(interval, axis),
        }
        for intent, interval in sorted(found.items(), key=lambda item: item[1].mean)
    ]


def _distribution(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Bars of each policy's rewards; heights in per cent of the highest bar of all."""
    rows = distribution_rows(evaluation)
    highest = max(row[name] for row in rows for name in evaluation.policies)
    return [
        {
            "policy": name,
            "bars": [
                {
                    "reward": row["reward"],
                    "share": f"{100 * row[name]:.0f}%",
                    "height": round(100 * row[name] / highest, 1),
                }
                for row in rows
            ],
        }
        for name in evaluation.policies
    ]


def _conversations(evaluation: Evaluation, limit: int) -> list[dict[str, Any]]:
    """Cards by their difference: the largest losses, the largest gains, and then all others."""
    differences = evaluation.versus_champion.reward_differences
    ordered = sorted(differences, key=lambda key: (differences[key], key))
    if limit and limit < len(ordered):
        half = limit // 2
        ordered = ordered[: limit - half] + (ordered[-half:] if half else [])
    extremes = min(_EXTREMES, len(ordered) // 2)
    losses, gains = ordered[:extremes], ordered[len(ordered) - extremes :][::-1]
    others = ordered[extremes : len(ordered) - extremes]
    sections = (
        ("Where it lost most", "losses", losses),
        ("Where it gained most", "gains", gains),
        ("All others, from loss to gain", "others", others),
    )
    by_key = {
        name: {one.key: one for one in policy.conversations}
        for name, policy in evaluation.policies.items()
    }
    return [
        {
            "title": title,
            "anchor": anchor,
            "cards": [
                _card(key, differences[key], {name: table[key] for name, table in by_key.items()})
                for key in keys
            ],
        }
        for title, anchor, keys in sections
        if keys
    ]


def _card(
    key: tuple[str, int], difference: float, played: dict[PolicyName, EvaluatedConversation]
) -> dict[str, Any]:
    """One scenario and seed: what the user said, and every policy's answers next to each other."""
    challenger = played["challenger"]
    return {
        "anchor": f"{key[0]}--{key[1]}",
        "scenario": key[0],
        "seed": key[1],
        "intent": challenger.intent,
        "difference": difference,
        "context": str(challenger.scenario.get("context") or ""),
        "exchanges": _exchanges(played),
        "columns": [_column(name, one) for name, one in played.items()],
        "rubric": [
            {
                "kind": verdict.kind.replace("_", " "),
                "description": verdict.description,
                "met": [
                    one.rubric[number].met if number < len(one.rubric) else None
                    for one in played.values()
                ],
            }
            for number, verdict in enumerate(challenger.rubric)
        ],
    }


def _column(name: PolicyName, one: EvaluatedConversation) -> dict[str, Any]:
    trajectory = one.trajectory
    return {
        "policy": name,
        "failed": one.failed,
        "error": trajectory.error,
        "reward": None if one.failed else trajectory.episode_reward,
        "parts": {} if one.failed else dict(trajectory.reward_parts),
        "log_likelihood": one.log_likelihood,
        "tokens": one.answer_tokens,
        "stop_reason": str(trajectory.stop_reason).replace("_", " "),
    }


def _exchanges(played: dict[PolicyName, EvaluatedConversation]) -> list[dict[str, Any]]:
    """The user's messages are scripted, so they are the same for all: each once, with the answers
    of every policy; an answer that is not there (the context was full) is None.
    """
    users = [
        [turn.content for turn in one.trajectory.turns if turn.role == "user"]
        for one in played.values()
    ]
    longest = max(users, key=len)
    return [
        {
            "user": said,
            "answers": [
                one.answers[number] if number < len(one.answers) else None
                for one in played.values()
            ],
        }
        for number, said in enumerate(longest)
    ]
