"""The judge, against a real server on loopback."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.core.reward import CompositeReward, SafetyReward, check_reward
from stateset_agents.exceptions import ConfigurationError, RewardError
from stateset_agents.rewards import LLMJudgeReward
from stateset_agents.rewards.judge_account import LEDGER, Account, Limits
from tests.rewards.judge_server import JudgeServer, judge_server, marks
from tests.rewards.made import GOOD, conversation, score

RUBRIC = {"help": "Does it help?", "truth": "Is it true?"}
FINE = marks(help=5, truth=3)


def judge(server: JudgeServer, **settings: Any) -> LLMJudgeReward:
    return LLMJudgeReward(
        "judge-1", server.url, **{"rubric": RUBRIC, "backoff_seconds": 0.001} | settings
    )


def answers(*texts: str) -> list[Any]:
    return [(conversation(text), {}) for text in texts]


async def test_marks_become_the_weighted_mean_of_the_criteria() -> None:
    with judge_server(lambda n, body: FINE) as server:
        result = await score(judge(server), conversation(*GOOD))
        assert result.breakdown == {"help": 1.0, "truth": 0.5}
        assert result.score == pytest.approx(0.75)
        assert result.metadata["reason"] == "as told"
        weighted = judge(server, criterion_weights={"truth": 3.0})
        assert (await score(weighted, conversation(*GOOD))).score == pytest.approx(
            (1.0 + 3 * 0.5) / 4
        )


async def test_the_judge_gets_rubric_conversation_and_settings_in_openai_form() -> None:
    with judge_server(lambda n, body: FINE) as server:
        await score(judge(server, max_answer_tokens=77, api_key="k-1"), conversation(*GOOD))
        body = server.bodies[0]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0, 77)
        system, user = body["messages"]
        assert "- help: Does it help?" in system["content"]
        assert '"help": 1-5, "truth": 1-5' in system["content"]
        said = json.loads(user["content"])
        assert [turn["role"] for turn in said] == ["system"] + ["user", "assistant"] * 2
        assert said[2]["content"] == GOOD[0]
        assert server.headers[0]["Authorization"] == "Bearer k-1"


async def test_the_key_comes_from_the_environment_variable_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", "k-2")
    monkeypatch.delenv("STATESET_JUDGE_API_KEY", raising=False)
    with judge_server(lambda n, body: FINE) as server:
        await score(judge(server, api_key_env="MY_JUDGE_KEY"), conversation(*GOOD))
        await score(judge(server), conversation(*GOOD))
        assert server.headers[0]["Authorization"] == "Bearer k-2"
        assert "Authorization" not in server.headers[1]


async def test_marks_are_found_in_a_fence_and_between_sentences() -> None:
    texts = [f"```json\n{FINE}\n```", f"Well {{so}}: {FINE} That is all."]
    with judge_server(lambda n, body: texts[n]) as server:
        results = await judge(server, max_concurrency=1).compute_rewards(answers("a.", "b."))
        assert [result.score for result in results] == [0.75, 0.75]


async def test_a_conversation_is_paid_for_once_in_a_batch_and_once_on_disk(tmp_path: Path) -> None:
    with judge_server(lambda n, body: FINE) as server:
        first = await judge(server, cache_dir=tmp_path).compute_rewards(answers("a.", "b.", "a."))
        assert len(server.bodies) == 2
        again = await judge(server, cache_dir=tmp_path).compute_rewards(answers("b.", "c."))
        assert len(server.bodies) == 3
        assert first[1] == again[0]
        # weights are not the judge's business, another question to it is another request
        other = judge(server, cache_dir=tmp_path, criterion_weights={"help": 0.0})
        assert (await other.compute_rewards(answers("a.")))[0].score == 0.5
        assert len(server.bodies) == 3
        await judge(server, cache_dir=tmp_path, max_answer_tokens=9).compute_rewards(answers("a."))
        assert len(server.bodies) == 4


async def test_a_broken_entry_of_the_cache_is_asked_for_again(tmp_path: Path) -> None:
    with judge_server(lambda n, body: FINE) as server:
        await judge(server, cache_dir=tmp_path).compute_rewards(answers("a."))
        (entry,) = tmp_path.glob("*/*.json")
        entry.write_text("{")
        await judge(server, cache_dir=tmp_path).compute_rewards(answers("a."))
        assert len(server.bodies) == 2
        assert json.loads(entry.read_text())["answer"] == FINE
        assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_pass_is_asked_again(status: int) -> None:
    with judge_server(lambda n, body: (status, "busy", {}) if n < 2 else FINE) as server:
        assert (await score(judge(server), conversation(*GOOD))).score == 0.75
        assert len(server.bodies) == 3


async def test_attempts_are_counted_and_the_error_names_reward_address_and_status() -> None:
    with judge_server(lambda n, body: (503, "overloaded", {})) as server:
        with pytest.raises(RewardError, match="503") as caught:
            await score(judge(server, max_retries=2, name="verdict"), conversation(*GOOD))
        assert len(server.bodies) == 3
        for part in ("'verdict'", server.url, "overloaded", "3 times"):
            assert part in str(caught.value)


async def test_retry_after_is_waited_for_in_place_of_the_backoff(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = (429, "slow down", {"Retry-After": "0"})
    with judge_server(lambda n, body: told if n == 0 else FINE) as server:
        await score(judge(server, backoff_seconds=0.2), conversation(*GOOD))
    with judge_server(lambda n, body: (503, "busy", {}) if n == 0 else FINE) as server:
        await score(judge(server, backoff_seconds=0.2), conversation(*GOOD))
    assert [record.getMessage()[-22:] for record in caplog.records] == [
        "; asked again in 0.0 s",
        "; asked again in 0.2 s",
    ]


@pytest.mark.parametrize(
    ("status", "told"), [(401, "API key"), (404, "base_url"), (400, "does not take this request")]
)
async def test_what_does_not_pass_is_not_asked_again(status: int, told: str) -> None:
    with judge_server(lambda n, body: (status, "no", {})) as server:
        with pytest.raises(RewardError, match=told):
            await score(judge(server, on_failure="skip"), conversation(*GOOD))
        assert len(server.bodies) == 1


async def test_one_conversation_that_the_server_refuses_can_be_skipped() -> None:
    """Too long, or filtered: a policy can provoke that, and it must not end the run."""
    refused = (400, "maximum context length is 8192 tokens", {})
    silent = (200, json.dumps({"choices": [{"message": {"content": None}}]}), {})
    with judge_server(lambda n, body: (FINE, refused, silent, silent, silent)[n]) as server:
        reward = judge(server, on_failure="skip")
        told = [await score(reward, conversation(f"answer {n}")) for n in range(3)]
    assert [math.isnan(one.score) for one in told] == [False, True, True]
    assert "context length" in told[1].metadata["reason"]


async def test_a_server_that_is_not_there_or_too_slow_is_told() -> None:
    with (
        judge_server(lambda n, body: FINE, delay_seconds=0.3) as server,
        pytest.raises(RewardError, match=r"did not answer within 0\.05 s"),
    ):
        await score(judge(server, timeout_seconds=0.05, max_retries=0), conversation(*GOOD))
    with pytest.raises(RewardError, match="cannot be reached"):
        await score(judge(server, max_retries=1), conversation(*GOOD))


async def test_an_answer_that_is_no_completion_is_told_with_its_beginning() -> None:
    with (
        judge_server(lambda n, body: (200, "<html>hello", {})) as server,
        pytest.raises(RewardError, match=r"no chat completion \(<html>hello"),
    ):
        await score(judge(server), conversation(*GOOD))


@pytest.mark.parametrize("first", ["Very good!", '{"help": 5}', '{"help": 9, "truth": 1}', "{}"])
async def test_a_judge_without_marks_is_told_so_and_asked_again(first: str) -> None:
    with judge_server(lambda n, body: first if n == 0 else FINE) as server:
        assert (await score(judge(server), conversation(*GOOD))).score == 0.75
        assert [message["role"] for message in server.bodies[1]["messages"]] == [
            "system",
            "user",
            "assistant",
            "user",
        ]
        assert server.bodies[1]["messages"][2]["content"] == first


async def test_a_judge_that_never_gives_marks_raises_or_leaves_the_conversation_out() -> None:
    with judge_server(lambda n, body: "I like it.") as server:
        with pytest.raises(RewardError, match=r"no marks in 2 attempts.*I like it"):
            await score(judge(server, max_retries=1), conversation(*GOOD))
        skipped = await score(judge(server, max_retries=1, on_failure="skip"), conversation(*GOOD))
        assert math.isnan(skipped.score)


async def test_no_more_is_spent_than_allowed_and_the_account_outlives_the_object(
    tmp_path: Path,
) -> None:
    prices = {"input_price": 1.0, "output_price": 10.0}  # 1000 and 100 tokens: 0.002 a request
    with judge_server(lambda n, body: FINE) as server:
        one = judge(server, **prices, max_cost=0.008, cache_dir=tmp_path, max_answer_tokens=100)
        await one.compute_rewards(answers("a.", "b."))
        assert one.account.cost == pytest.approx(0.004)
        two = judge(server, **prices, max_cost=0.008, cache_dir=tmp_path, max_answer_tokens=100)
        assert two.account.cost == pytest.approx(0.004)
        await two.compute_rewards(answers("c.", "d."))
        with pytest.raises(RewardError, match=r"max_cost 0\.0080.*spending\.jsonl"):
            await two.compute_rewards(answers("e."))
        assert two.account.cost <= 0.008
        assert len(server.bodies) == 4
        entries = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
        assert [one["cost"] for one in entries if "cost" in one] == pytest.approx([0.002] * 4)
        await two.compute_rewards(answers("a."))  # what is on disk costs nothing


async def test_requests_side_by_side_do_not_outspend_the_limit() -> None:
    with judge_server(lambda n, body: FINE, delay_seconds=0.05) as server:
        reward = judge(server, max_requests=3, max_concurrency=8)
        with pytest.raises(RewardError, match="max_requests is 3"):
            await reward.compute_rewards(answers(*"abcdefgh"))
        assert len(server.bodies) <= 3


def test_processes_that_share_a_folder_spend_from_one_purse(tmp_path: Path) -> None:
    # 4 processes try 30 requests of 1 each, and 50 are allowed
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from stateset_agents.exceptions import RewardError\n"
        "from stateset_agents.rewards.judge_account import Account, Limits\n"
        "account = Account(Limits(max_cost=50, input_price=1), Path(sys.argv[1]))\n"
        "paid = 0\n"
        "for _ in range(30):\n"
        "    try:\n"
        "        reservation = account.reserve(1.0)\n"
        "    except RewardError:\n"
        "        break\n"
        "    account.settle(reservation, 1.0, 10, 1)\n"
        "    paid += 1\n"
        "print(paid)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paid = sum(int(process.communicate()[0]) for process in started)
    assert paid == 50
    assert Account(Limits(), tmp_path).cost == 50


def test_what_another_process_has_set_aside_is_not_spent_a_second_time(tmp_path: Path) -> None:
    limits = Limits(max_cost=1.0, input_price=1)
    one, other = Account(limits, tmp_path), Account(limits, tmp_path)
    reservation = one.reserve(0.7)
    with pytest.raises(RewardError, match=r"0\.7000 are set aside for requests under way"):
        other.reserve(0.7)
    one.give_back(reservation)
    other.settle(other.reserve(0.7), 0.6, 100, 10)
    with pytest.raises(RewardError, match=r"has spent 0\.6000 of max_cost 1\.0000"):
        one.reserve(0.7)


async def test_tokens_are_estimated_where_the_server_tells_none() -> None:
    with judge_server(lambda n, body: FINE, usage=None) as server:
        reward = judge(server, input_price=1.0)
        await score(reward, conversation(*GOOD))
        characters = sum(len(message["content"]) for message in server.bodies[0]["messages"])
        assert reward.account.cost == pytest.approx(characters / 3 / 1e6, rel=0.05)


async def test_so_many_requests_at_a_time_and_no_more() -> None:
    with judge_server(lambda n, body: FINE, delay_seconds=0.05) as server:
        await judge(server, max_concurrency=3).compute_rewards(answers(*"abcdefgh"))
        assert server.most_open == 3
        assert len(server.bodies) == 8


async def test_a_ledger_that_cannot_be_read_names_its_line(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text('{"cost": 1}\nnonsense\n')
    with pytest.raises(RewardError, match="line 2: 'nonsense'"):
        LLMJudgeReward("m", "http://127.0.0.1:1/v1", cache_dir=tmp_path)


async def test_a_conversation_without_an_answer_is_not_sent() -> None:
    with judge_server(lambda n, body: FINE) as server:
        assert (await score(judge(server), [])).score == 0.0
        assert not server.bodies


async def test_a_judge_is_part_of_a_composite_and_passes_the_check() -> None:
    def by_words(n: int, body: dict[str, Any]) -> str:
        said = json.loads(body["messages"][1]["content"])[-1]["content"]
        good = "30 days" in said and "sorry please" not in said and len(said) < 400
        return marks(help=5 if good else 2, truth=5 if good else 1)

    with judge_server(lambda n, body: FINE) as server:
        reward = CompositeReward([judge(server, name="judge")], gates=[SafetyReward()])
        assert (await score(reward, conversation(*GOOD))).breakdown["judge"] == 0.75
    with judge_server(by_words) as server:
        assert (await check_reward(judge(server))).findings == ()


def test_every_setting_that_cannot_work_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        LLMJudgeReward(
            "",
            "localhost:8000",
            rubric={"reason": "why", "help": ""},
            criterion_weights={"helps": 1.0, "help": -1.0},
            max_cost=5.0,
            max_requests=-1,
            max_concurrency=0,
            max_retries=-1,
            backoff_seconds=-1,
            timeout_seconds=0,
            max_answer_tokens=0,
            on_failure="ignore",  # type: ignore[arg-type]
        )
    text = str(caught.value)
    for part in (
        "model is empty",
        "'localhost:8000'",
        "rubric['reason']",
        "rubric['help']",
        "criterion_weights['helps']",
        "criterion_weights['help'] is -1.0",
        "input_price and output_price are 0",
        "max_requests is -1",
        "max_concurrency is 0",
        "max_retries is -1",
        "backoff_seconds is -1",
        "timeout_seconds is 0",
        "max_answer_tokens is 0",
        "on_failure is 'ignore'",
    ):
        assert part in text
    assert len(caught.value.problems) == 14
    with pytest.raises(ConfigurationError, match="rubric is empty"):
        LLMJudgeReward("m", "http://127.0.0.1:1/v1", rubric={})
    with pytest.raises(ConfigurationError, match="no criterion has a weight"):
        LLMJudgeReward("m", "http://h/v1", rubric={"a": "b"}, criterion_weights={"a": 0})
