import pytest

from stateset_agents.core.agent import GenerationSettings
from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.evaluation.compare import compare
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.run import Candidate, play, select_scenarios
from stateset_agents.exceptions import ConfigurationError, EvaluationError
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.inference.transformers_engine import TransformersEngine
from tests.tiny_model import make_tiny_model

RUBRIC = {
    "items": [
        {"kind": "ask_for", "description": "asks for the number", "any_of": [["order number"]]},
        {"kind": "must_not", "description": "promises no refund", "any_of": [["refund you"]]},
    ]
}
SCENARIOS = [
    {
        "id": f"{intent}-{number}",
        "intent": intent,
        "topic": "orders",
        "context": "Ask for the order number.",
        "user_responses": [f"Where is parcel {number}?", "I do not know."],
        "rubric": RUBRIC,
    }
    for intent in ("late", "lost")
    for number in range(2)
]
CONFIG = EvaluationConfig(seeds=[7, 8], bootstrap_samples=200)
SHORT = GenerationSettings(max_new_tokens=12, temperature=1.0, torch_dtype="float32")


class Length(RewardFunction):
    """Characters that the assistant said, by hundred: a number that any change would move."""

    async def compute_reward(self, turns, context=None):
        said = sum(len(turn.content) for turn in turns if turn.role == "assistant")
        return RewardResult(said / 100, breakdown={"length": said / 100, "nothing": 0.0})


def engine_of(folder, **options):
    return TransformersEngine(
        load_model(folder, dtype="float32"), load_tokenizer(folder), **options
    )


async def played(name, engine, scenarios=SCENARIOS, config=CONFIG):
    try:
        return await play(Candidate(name, name, engine), scenarios, Length(), SHORT, config)
    finally:
        await engine.aclose()


async def test_the_same_weights_say_the_same_words_so_the_difference_is_exactly_0(tiny_model_dir):
    base = await played("base", engine_of(tiny_model_dir))
    twin = await played("challenger", engine_of(tiny_model_dir, max_batch_size=3))
    assert [one.answers for one in twin.conversations] == [
        one.answers for one in base.conversations
    ]
    reward = compare(twin, base, CONFIG).differences["reward"]
    assert (reward.mean, reward.low, reward.high) == (0.0, 0.0, 0.0)


async def test_other_weights_and_other_seeds_say_other_words(tiny_model_dir, tmp_path):
    base = await played("base", engine_of(tiny_model_dir))
    other = await played("challenger", engine_of(make_tiny_model(tmp_path / "other", seed=5)))
    assert [one.key for one in other.conversations] == [one.key for one in base.conversations]
    differs = [
        a.answers != b.answers for a, b in zip(base.conversations, other.conversations, strict=True)
    ]
    assert all(differs)
    first, second = base.conversations[:4], base.conversations[4:]
    assert [one.seed for one in base.conversations] == [7] * 4 + [8] * 4
    assert all(a.answers != b.answers for a, b in zip(first, second, strict=True))


async def test_a_scenario_is_played_alike_whatever_else_is_played(tiny_model_dir):
    everything = await played("base", engine_of(tiny_model_dir))
    alone = await played("base", engine_of(tiny_model_dir), SCENARIOS[2:3])
    by_key = {one.key: one.answers for one in everything.conversations}
    assert {one.key: one.answers for one in alone.conversations}.items() <= by_key.items()


async def test_every_part_of_the_reward_and_every_rubric_item_is_kept():
    result = await played("challenger", StubEngine(["Please send me your order number."]))
    assert len(result.conversations) == 8
    for one in result.conversations:
        # 12 bytes of "Please send me ..." survive max_new_tokens in each of the two turns
        assert one.answers == ["Please send "] * 2
        assert one.measures() == {
            "reward": 0.24, "length": 0.24, "nothing": 0.0, "answer_tokens": 12.0, "truncated": 1.0
        }  # fmt: skip
        assert [item.met for item in one.rubric] == [False, True]
    longer = GenerationSettings(max_new_tokens=60)
    engine = StubEngine(["Please send me your order number."])
    result = await play(Candidate("base", "b", engine), SCENARIOS, Length(), longer, CONFIG)
    assert [item.met for item in result.conversations[0].rubric] == [True, True]
    assert result.seconds > 0
    assert result.milliseconds_per_turn == pytest.approx(1000 * result.seconds / 16)


async def test_a_conversation_that_does_not_fit_has_failed_and_has_no_score():
    long = {**SCENARIOS[0], "id": "long", "context": "x" * 900}
    engine = StubEngine(max_context_tokens=600)
    result = await played("challenger", engine, [*SCENARIOS, long])
    assert result.failed_count == 2  # one a seed
    assert {one.key[0] for one in result.conversations if one.failed} == {"long"}
    assert len(result.scored) == 8


def test_at_most_so_many_scenarios_of_each_intent_are_played():
    assert [one["id"] for one in select_scenarios(SCENARIOS[::-1], 1)] == ["late-0", "lost-0"]
    assert [one["id"] for one in select_scenarios(SCENARIOS[::-1], 0)] == [
        "late-0", "late-1", "lost-0", "lost-1"
    ]  # fmt: skip
    with pytest.raises(EvaluationError, match="no held-out scenario"):
        select_scenarios([], 0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"seeds": [1]}, "seeds"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": [1, 2], "fluency_seeds": 3}, "fluency_seeds"),
        ({"fluency_band": (0.1, 0.5)}, "fluency_band"),
        ({"seeed": [1, 2]}, "seeed"),
        ({"confidence": 95}, "confidence"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, problem):
    with pytest.raises(ConfigurationError, match=problem):
        EvaluationConfig(**settings)
