"""How rewards agree with people's ratings."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.core.reward import CorrectnessReward, reward_function
from stateset_agents.exceptions import DataError
from stateset_agents.rewards.__main__ import REWARDS, main
from stateset_agents.rewards.agreement import (
    agreement,
    agreement_of,
    length_agreement,
    read_rated_turns,
)
from tests.rewards.test_cases import REWARDS as TABLES

RATED = Path(__file__).parents[3] / "shared" / "data" / "movie_tickets_rated_turns.jsonl.gz"
needs_ratings = pytest.mark.skipif(
    not RATED.is_file(), reason="the rated turns (../shared/data) are not on this machine"
)


def row(said: str, label: bool, prompt: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    return {
        "conversation_id": "c",
        "prompt": [{"role": "user", "content": "Which films?"}, *prompt],
        "completion": [{"role": "assistant", "content": said}],
        "label": label,
    }


def written(path: Path, *rows: object) -> Path:
    text = "".join(json.dumps(one) + "\n" for one in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_the_auc_is_the_share_of_pairs_in_order_and_a_tie_is_half_of_one() -> None:
    # pairs (0.9, 0.5), (0.9, 0.1), (0.5, 0.5), (0.5, 0.1): 1 + 1 + 0.5 + 1 of 4
    found = agreement_of([0.9, 0.5, 0.5, 0.1], [True, False, True, False])
    assert found.auc == pytest.approx(3.5 / 4)
    assert (found.mean_good, found.mean_bad) == (pytest.approx(0.7), pytest.approx(0.3))
    assert agreement_of([1.0, 1.0, 1.0], [True, False, True]).auc == 0.5
    assert found.low < found.auc <= found.high


def test_the_interval_of_independent_turns_is_that_of_delong() -> None:
    # by hand: every good turn is above half of the bad ones and ties with the others, so all 30
    # placements are 0.75; of the bad ones 15 are 0.5 and 15 are 1, each 0.25 from the AUC, and the
    # variance is 30 * 0.25**2 * 30 / 29 / 30**2
    scores = [1.0] * 30 + [1.0] * 15 + [0.0] * 15
    found = agreement_of(scores, [True] * 30 + [False] * 30)
    assert found.auc == 0.75
    assert found.high - found.auc == pytest.approx(1.96 * (0.0625 / 29) ** 0.5)


def test_turns_of_one_conversation_count_as_one_observation() -> None:
    scores, good = [0.9, 0.4, 0.7, 0.5, 0.6, 0.1], [True, True, True, False, False, False]
    ids = ["a", "b", "c", "a", "d", "e"]
    once = agreement_of(scores, good, ids)
    again = agreement_of(scores * 4, good * 4, ids * 4)  # the same conversations, told four times
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    apart = agreement_of(scores * 4, good * 4)
    assert apart.auc - apart.low < 0.6 * (again.auc - again.low)


@pytest.mark.parametrize("name", ["rated.jsonl", "rated.jsonl.gz"])
async def test_a_turn_is_scored_in_its_conversation_and_calls_of_tools_are_left_out(
    tmp_path: Path, name: str
) -> None:
    call = {"role": "assistant", "content": '{"find": {"films": "all"}}'}
    tool = {"role": "tool", "content": '{"find": {"films": ["Scream", "Encanto"]}}'}
    path = written(
        tmp_path / name,
        row("Scream and Encanto are on.", True, (call, tool)),
        row("Moonfall is on, I believe.", False, (call, tool)),
        row('{"find": {}}', False),
    )
    rated = read_rated_turns(path)
    assert [[turn.role for turn in one.turns] for one in rated] == [
        ["user", "tool", "assistant"]
    ] * 2
    assert (await agreement(CorrectnessReward(), rated)).auc == 1.0

    @reward_function()
    def last_word(turns: Any, context: Any = None) -> float:
        return float(turns[-1].content.endswith("believe."))

    assert (await agreement(last_word, rated)).auc == 0.0
    assert length_agreement(rated).auc == 0.5  # five words each


def test_rows_of_another_form_and_ratings_of_one_kind_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "odd.jsonl", {"prompt": []}, row("a", True) | {"label": "good"})
    with pytest.raises(DataError) as caught:
        read_rated_turns(path)
    assert len(caught.value.problems) == 2
    assert "label is 'good'" in str(caught.value)
    assert main([str(written(tmp_path / "all.jsonl", row("Yes.", True)))]) == 1
    assert "1 turns are rated good and 0 bad" in capsys.readouterr().err
    assert main([str(tmp_path / "none.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_command_prints_a_row_for_every_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "rated.jsonl", row("Scream is on.", True), row("Hm.", False))
    assert main([str(path)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("1 good and 1 bad turns\n")
    assert all(f"| {name} |" in table for name in REWARDS if "embeddings" not in name)
    assert {name.split(",")[0].replace(" ", "_") for name in REWARDS} <= set(TABLES)


@needs_ratings
async def test_the_figures_of_the_page_are_those_of_the_rated_turns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    figures = dict(re.findall(r"^\| ([^|]+) \| (0\.\d{3}) \| 0\.", page, re.MULTILINE))
    rated = read_rated_turns(RATED)
    assert (len(rated), sum(one.good for one in rated)) == (1365, 139)
    assert f"{length_agreement(rated).auc:.3f}" == figures["(number of words)"]
    assert f"{(await agreement(CorrectnessReward(), rated)).auc:.3f}" == figures["correctness"]
    assert set(figures) == {*REWARDS, "(number of words)"}
