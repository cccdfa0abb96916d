"""Reward-model training and inference, on the tiny model."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel

from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.data.schemas import Message, PreferencePair
from stateset_agents.exceptions import ConfigurationError, DataError, ModelSourceError
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.rewards.learned import LearnedReward
from stateset_agents.rewards.prefix_tree import pack_sequences
from stateset_agents.rewards.reward_network import (
    Calibration,
    RewardNetwork,
    conversation_tokens,
    load_reward_tokenizer,
)
from stateset_agents.training.reward_model import (
    TrainedRewardModel,
    bradley_terry_loss,
    train_reward_model,
)
from stateset_agents.training.reward_model_body import SplitBody
from stateset_agents.training.reward_model_calibration import (
    CalibrationBin,
    calibration_curve,
    expected_calibration_error,
    fit_calibration,
)
from stateset_agents.training.reward_model_config import RewardModelConfig
from tests.tiny_model import make_tiny_tokenizer

CONFIG = RewardModelConfig(
    trained_layers=1,
    dtype="float32",
    num_epochs=6,
    learning_rate=3e-3,
    head_learning_rate=3e-3,
    batch_pairs=6,
    pack_tokens=512,
)


def make_pair(number: int) -> PreferencePair:
    """Good answers ask for the number; which of the two is longer alternates."""
    item = ("lamp", "shirt", "parcel", "phone")[number % 4]
    good = "Could you please tell me your order number?" + " Thank you." * (number % 2)
    bad = "I do not know." + " It is what it is, sorry for that." * (1 - number % 2)
    return PreferencePair(
        id=f"pair-{number}",
        prompt=(
            Message(role="system", content="You are a helpful assistant of an online shop."),
            Message(role="user", content=f"My {item} number {number} came broken."),
        ),
        chosen=(Message(role="assistant", content=good),),
        rejected=(Message(role="assistant", content=bad),),
    )


PAIRS = [make_pair(number) for number in range(24)]
HELDOUT = [make_pair(number) for number in range(100, 110)]


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path) -> TrainedRewardModel:
    return train_reward_model(PAIRS, HELDOUT, tiny_model_dir, CONFIG)


@pytest.fixture(scope="module")
def folder(trained: TrainedRewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward_model")
    trained.save(path)
    return path


@pytest.mark.parametrize(
    ("margins", "expected"),
    [(None, 0.7841006659477778), ([0.1, 0.2], 0.8712238682018404)],
)
def test_the_loss_is_the_one_of_other_peoples_trainers(
    margins: list[float] | None, expected: float
) -> None:
    # TRL 1.16 RewardTrainer on these scores, center_rewards_coefficient 0.01
    chosen, rejected = torch.tensor([[1.2, -0.3], [0.4, 0.5]], dtype=torch.float64)
    given = None if margins is None else torch.tensor(margins, dtype=torch.float64)
    loss = bradley_terry_loss(chosen, rejected, given, center_coefficient=0.01)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_without_centring_is_the_mean_log_sigmoid() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    expected = -(F.logsigmoid(torch.tensor(2.0)) + F.logsigmoid(torch.tensor(-1.0))) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected.item())


def test_it_learns_what_is_not_length(trained: TrainedRewardModel) -> None:
    metrics = trained.metrics
    assert metrics["heldout_accuracy"] == 1.0
    assert metrics["length_baseline_accuracy"] == 0.5
    assert metrics["heldout_accuracy_chosen_longer"] == 1.0
    assert metrics["heldout_accuracy_chosen_shorter"] == 1.0
    assert metrics["train_pairs"] + metrics["calibration_pairs"] == len(PAIRS)
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"] / 2
    assert sum(one.pairs for one in trained.calibration) == len(HELDOUT)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    trained: TrainedRewardModel, tiny_model_dir: Path
) -> None:
    short = CONFIG.model_copy(update={"num_epochs": 1})
    first, second, other = (
        train_reward_model(PAIRS, HELDOUT, tiny_model_dir, one)
        for one in (short, short, short.model_copy(update={"seed": 1}))
    )
    for name, weights in first.network.state_dict().items():
        assert torch.equal(weights, second.network.state_dict()[name]), name
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_how_a_batch_is_packed_changes_no_loss_and_a_margin_raises_it(tiny_model_dir: Path) -> None:
    margins = [p.model_copy(update={"metadata": {"margin": 1.0}}) for p in PAIRS]

    def first_loss(pairs: list[PreferencePair], pack_tokens: int) -> float:
        whole = {"num_epochs": 1, "batch_pairs": 24, "pack_tokens": pack_tokens}
        config = CONFIG.model_copy(update=whole)
        return train_reward_model(pairs, HELDOUT, tiny_model_dir, config).curve[0]["loss"]

    one_pack = first_loss(PAIRS, 8192)
    assert first_loss(PAIRS, 128) == pytest.approx(one_pack, abs=1e-5)
    assert first_loss(margins, 128) > one_pack + 0.4  # the slope of -log sigmoid at 0 is 0.5


def test_only_the_top_layers_change(trained: TrainedRewardModel, tiny_model_dir: Path) -> None:
    base = load_model(tiny_model_dir, dtype="float32").base_model.state_dict()
    changed = {
        name
        for name, weights in trained.network.body.state_dict().items()
        if not torch.equal(weights, base[name])
    }
    assert changed
    assert all(name.startswith(("layers.1.", "norm.")) for name in changed)


def test_a_packed_pass_gives_what_each_sequence_gets_alone(tiny_model_dir: Path) -> None:
    body = load_model(tiny_model_dir, dtype="float32").base_model
    sequences = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 7, 8, 9, 11, 12], [20, 21]]
    alone = [
        body(input_ids=torch.tensor([one]), use_cache=False).last_hidden_state[0, -1]
        for one in sequences
    ]
    split = SplitBody(body, trained_layers=1)
    (pack,) = pack_sequences([[one] for one in sequences], 64)
    packed = split.trained(pack, split.frozen(pack))[pack.last_nodes]
    for index, hidden in zip(pack.sequence_indices, packed, strict=True):
        torch.testing.assert_close(hidden, alone[index], atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_pairs_run_one_by_one(tiny_model_dir: Path) -> None:
    pairs = [[[5, 6, 7, 8], [5, 6, 7, 9, 10]], [[5, 6, 11], [5, 6, 12]]]

    def gradients(groups: list[list[list[list[int]]]]) -> list[torch.Tensor]:
        split = SplitBody(load_model(tiny_model_dir, dtype="float32").base_model, 1)
        for some in groups:
            (pack,) = pack_sequences(some, 64)
            hidden = split.trained(pack, split.frozen(pack))[pack.last_nodes]
            values = hidden.sum(-1)
            loss = bradley_terry_loss(values[0::2], values[1::2]) * len(some) / 2
            loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in split.trained_parameters() if p.grad is not None]

    together, apart = gradients([pairs]), gradients([[pairs[0]], [pairs[1]]])
    assert len(together) == len(apart) > 0
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_body_that_cannot_be_cut_trains_whole_with_its_lower_layers_frozen(
    tmp_path: Path,
) -> None:
    tokenizer = make_tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = AutoModel.from_pretrained(tmp_path).state_dict()
    result = train_reward_model(PAIRS, HELDOUT, tmp_path, CONFIG)
    after = result.network.body.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} >= {"h.1.mlp.c_fc.weight"}
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith(("h.0.", "wte")))
    assert result.metrics["train_accuracy"] > 0.9


def test_fewer_layers_of_the_base_can_be_used(tiny_model_dir: Path, tmp_path: Path) -> None:
    one_layer = CONFIG.model_copy(update={"base_layers": 1, "num_epochs": 1})
    train_reward_model(PAIRS, HELDOUT, tiny_model_dir, one_layer).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 1
    LearnedReward.load(tmp_path)
    for field, count in (("base_layers", 3), ("trained_layers", 3)):
        with pytest.raises(ConfigurationError, match=f"reward_model.{field} is 3"):
            train_reward_model(
                PAIRS, HELDOUT, tiny_model_dir, CONFIG.model_copy(update={field: count})
            )


def test_too_few_pairs_are_told_for_both_files_at_once(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError) as caught:
        train_reward_model(PAIRS[:3], HELDOUT[:2], tiny_model_dir, CONFIG)
    assert [problem.split()[0:2] for problem in caught.value.problems] == [
        ["3", "training"],
        ["2", "held-out"],
    ]


async def test_a_saved_model_scores_as_it_was_measured_and_batches_change_nothing(
    trained: TrainedRewardModel, folder: Path
) -> None:
    reward = LearnedReward.load(folder, weight=0.3, max_batch_tokens=512, dtype="float32")
    small = LearnedReward.load(folder, max_batch_tokens=32, dtype="float32")
    conversations = [
        ([ConversationTurn(m.role, m.content) for m in (*pair.prompt, *answer)], {})
        for pair in HELDOUT
        for answer in (pair.chosen, pair.rejected)
    ]
    results = await reward.compute_rewards(conversations)
    again = await small.compute_rewards(conversations)
    assert reward.weight == 0.3
    assert [one.score for one in again] == pytest.approx([r.score for r in results], abs=1e-5)
    chosen, rejected = [r.score for r in results[0::2]], [r.score for r in results[1::2]]
    assert all(0 < bad < good < 1 for good, bad in zip(chosen, rejected, strict=True))
    margins = [a.breakdown["raw"] - b.breakdown["raw"] for a, b in
               zip(results[0::2], results[1::2], strict=True)]  # fmt: skip
    assert sum(margins) / len(margins) == pytest.approx(trained.metrics["heldout_margin"], abs=1e-4)


async def test_each_assistant_turn_is_scored_in_its_place(folder: Path) -> None:
    reward = LearnedReward.load(folder, dtype="float32")
    pair = HELDOUT[0]
    turns = [ConversationTurn(m.role, m.content) for m in (*pair.prompt, *pair.chosen)]
    first = await reward.compute_reward(turns)
    longer = [*turns, ConversationTurn("user", "48213."), ConversationTurn("assistant", "No.")]
    both = await reward.compute_reward(longer)
    assert first.turn_scores is not None
    assert both.turn_scores is not None
    assert both.turn_scores[0] == pytest.approx(first.turn_scores[0], abs=1e-6)
    assert both.score == pytest.approx(sum(both.turn_scores) / 2)
    assert (await reward.compute_reward(turns[:2])).score == 0.0


class CallerDependent(RewardNetwork):
    """Scores by place in the call, as rounding does in small."""

    def score(self, groups: Sequence[Sequence[Sequence[int]]], max_pack_tokens: int) -> list[float]:
        return [float(place) for place in range(sum(len(group) for group in groups))]


async def test_equal_conversations_so_far_have_equal_scores_in_whatever_packs(
    folder: Path,
) -> None:
    loaded = RewardNetwork.load(folder, "float32", "cpu")
    network = CallerDependent(loaded.body, loaded.head, loaded.max_tokens, loaded.calibration)
    reward = LearnedReward(network, load_reward_tokenizer(folder))
    pair = HELDOUT[0]
    start = [ConversationTurn(m.role, m.content) for m in (*pair.prompt, *pair.chosen)]
    ways = [
        [*start, ConversationTurn("user", said), ConversationTurn("assistant", "It is free.")]
        for said in ("48213.", "Why would you need that? I have told you before.", "No")
    ]
    results = await reward.compute_rewards([(turns, {}) for turns in ways])
    assert len({result.turn_scores[0] for result in results if result.turn_scores}) == 1
    assert len({result.score for result in results}) == 3


@pytest.mark.parametrize("name", ["head.safetensors", "reward_model.json", "model.safetensors"])
def test_a_folder_that_is_not_whole_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelSourceError, match="train"):
        LearnedReward.load(tmp_path)


def test_too_long_a_conversation_loses_its_oldest_messages_and_never_the_system(
    tiny_model_dir: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    system = {"role": "system", "content": "Answer shortly."}
    said = [
        {"role": role, "content": f"{role} says word {number}."}
        for number in range(6)
        for role in ("user", "assistant")
    ]
    whole = conversation_tokens(tokenizer, [system, *said], 10_000)
    assert whole == tokenizer.render([system, *said], add_generation_prompt=False)
    cut = conversation_tokens(tokenizer, [system, *said], len(whole) - 1)
    assert cut == tokenizer.render([system, *said[2:]], add_generation_prompt=False)
    tight = conversation_tokens(tokenizer, [system, said[-1]], 20)
    assert len(tight) == 20
    assert tight[:5] == whole[:5]
    assert tight[-5:] == whole[-5:]


USER_FIRST = (
    "{% set first = 1 if messages[0]['role'] == 'system' else 0 %}"
    "{% if messages | length <= first or messages[first]['role'] != 'user' %}"
    "{{ raise_exception('a user speaks first') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


def test_a_shortened_conversation_still_starts_with_the_user(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    tokenizer.hf.chat_template = USER_FIRST
    system = {"role": "system", "content": "Answer shortly."}
    said = [
        {"role": "assistant" if number % 2 else "user", "content": f"Word {number}, said once."}
        for number in range(6)
    ]
    whole = tokenizer.render([system, *said], add_generation_prompt=False)
    by_exchanges = [
        tokenizer.render([system, *said[first:]], add_generation_prompt=False)
        for first in (0, 2, 4)
    ]
    beginning = tokenizer.encode(
        "<|im_start|>system\nAnswer shortly.<|im_end|>\n<|im_start|>user\n"
    )
    for max_tokens in range(4, len(whole) + 1):
        tokens = conversation_tokens(tokenizer, [system, *said], max_tokens)
        fitting = [one for one in by_exchanges if len(one) <= max_tokens]
        if fitting:
            assert tokens == fitting[0]
        else:
            kept = min(max_tokens // 2, len(beginning))
            assert tokens == [*beginning[:kept], *whole[-(max_tokens - kept) :]]


def test_the_temperature_undoes_a_known_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, generator=generator, dtype=torch.float64) * 2
    flipped = torch.rand(4000, generator=generator, dtype=torch.float64) > torch.sigmoid(true)
    difference = torch.where(flipped, -true, true) * 3  # three times as sure as it should be
    fitted = fit_calibration(difference + 5, torch.full_like(difference, 5.0))
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    before = calibration_curve(torch.sigmoid(difference))
    after = calibration_curve(torch.sigmoid(difference / fitted.temperature))
    assert expected_calibration_error(after) < 0.03 < expected_calibration_error(before)


def test_pairs_that_are_all_right_do_not_drive_the_temperature_to_nothing() -> None:
    ones = torch.ones(20, dtype=torch.float64)
    fitted = fit_calibration(ones, -ones)
    # 21 of 22 right: logit log(21) at a difference of 2
    assert fitted == Calibration(0.0, pytest.approx(2 / torch.tensor(21.0).log().item(), rel=1e-3))


def test_the_curve_counts_by_hand() -> None:
    bins = calibration_curve(torch.tensor([0.6, 0.2, 0.9, 0.7]), max_bins=1)
    assert bins == [CalibrationBin(pytest.approx(0.75), 0.75, 4)]
    two = [CalibrationBin(0.6, 0.5, 10), CalibrationBin(0.9, 1.0, 30)]
    assert expected_calibration_error(two) == pytest.approx((10 * 0.1 + 30 * 0.1) / 40)
