import pytest
import torch

from stateset_agents.core.trajectory import ConversationTurn, MultiTurnTrajectory, TokenSample
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.fluency import answer_log_likelihoods
from stateset_agents.evaluation.results import EvaluatedConversation, PolicyResult
from stateset_agents.evaluation.run import measure_fluency
from stateset_agents.exceptions import EvaluationError
from stateset_agents.inference.engine import FinishReason
from stateset_agents.inference.loading import load_model, load_tokenizer

POLICY = "Refunds take 5 days. Ask for the order number."


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(tiny_model_dir, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(tiny_model_dir)


def say(tokenizer, answers, policy=POLICY):
    """A conversation whose assistant said `answers`, tokens recorded as the agent records them."""
    history = [{"role": "system", "content": policy}, {"role": "user", "content": "Hello?"}]
    prompt, samples = tuple(tokenizer.render(history)), []
    for answer in answers:
        sampled = (*tokenizer.encode(answer), tokenizer.hf.eos_token_id)
        samples.append(TokenSample(prompt, sampled, (0.0,) * len(sampled), FinishReason.STOP))
        follow = [{"role": "user", "content": f"And after {answer[:5]}?"}]
        prompt += sampled
        prompt += tuple(tokenizer.continuation(sampled, FinishReason.STOP, follow))
    turns = [ConversationTurn("assistant", answer) for answer in answers]
    return MultiTurnTrajectory("-".join(answers), turns, samples=samples)


def plainly(model, trajectory):
    """The same mean, one sample at a time, by torch's own cross-entropy."""
    total = count = 0
    for sample in trajectory.samples:
        ids = torch.tensor([[*sample.prompt_token_ids, *sample.token_ids]])
        start = len(sample.prompt_token_ids)
        with torch.inference_mode():
            logits = model(ids).logits[0, start - 1 : -1]
        total -= torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum").item()
        count += len(sample.token_ids)
    return total / count


def test_it_is_the_mean_log_likelihood_of_the_sampled_tokens_alone(model, tokenizer):
    conversations = [
        say(tokenizer, ["Please tell me your order number.", "Thank you."]),
        say(tokenizer, ["I am sorry.", "It left our warehouse on Monday.", "On Thursday."]),
        say(tokenizer, ["No."]),
    ]
    [found] = answer_log_likelihoods(model, [conversations])
    assert found == pytest.approx([plainly(model, one) for one in conversations], abs=1e-5)
    assert max(found) < 0


def test_sharing_the_opening_and_the_size_of_a_batch_change_nothing(model, tokenizer):
    conversations = [say(tokenizer, ["Thank you."] * n) for n in (1, 3, 2)]
    [together] = answer_log_likelihoods(model, [conversations])
    [one_by_one] = answer_log_likelihoods(model, [conversations], max_batch_tokens=1)
    alone = [answer_log_likelihoods(model, [[one]])[0][0] for one in conversations]
    assert together == pytest.approx(alone, abs=1e-5)
    assert one_by_one == pytest.approx(alone, abs=1e-5)


def test_conversations_that_open_differently_share_what_they_have_in_common(model, tokenizer):
    conversations = [
        say(tokenizer, ["Thank you."]),
        say(tokenizer, ["Thank you."], policy="Refunds take 9 days. Be short, and be kind."),
    ]
    [found] = answer_log_likelihoods(model, [conversations])
    assert found == pytest.approx([plainly(model, one) for one in conversations], abs=1e-5)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_the_words_a_model_would_say_are_more_fluent_than_others(model, tokenizer):
    history = [{"role": "system", "content": POLICY}, {"role": "user", "content": "Hello?"}]
    ids = torch.tensor([tokenizer.render(history)])
    likely = ids
    for _ in range(6):
        likely = torch.cat([likely, model(likely).logits[:, -1:].argmax(-1)], dim=1)
    unlikely = torch.cat([ids, model(ids).logits[:, -1:].argmin(-1)], dim=1)
    both = [
        MultiTurnTrajectory("t", [], samples=[
            TokenSample(tuple(ids[0].tolist()), said, (0.0,) * len(said), FinishReason.LENGTH)
        ])
        for said in (tuple(row[0, ids.shape[1] :].tolist()) for row in (likely, unlikely))
    ]  # fmt: skip
    [[greedy, odd]] = answer_log_likelihoods(model, [both])
    assert greedy > -6.2 > odd  # -ln(480) = -6.17 is a blind guess


def test_a_conversation_without_a_sampled_token_has_no_fluency(model):
    with pytest.raises(EvaluationError, match="no sampled token"):
        answer_log_likelihoods(model, [[MultiTurnTrajectory("empty", [])]])


def test_policies_are_measured_together_and_only_on_the_first_seeds(model, tokenizer):
    config = EvaluationConfig(seeds=[1, 2], fluency_seeds=1)
    said = {
        "base": {1: ["Thank you."], 2: ["Hello."]},
        "challenger": {1: ["It is free above 50 euros."], 2: ["Hello."]},
    }
    policies = [
        PolicyResult(name, name, tuple(
            EvaluatedConversation({"id": "s"}, seed, say(tokenizer, answers))
            for seed, answers in by_seed.items()
        ))
        for name, by_seed in said.items()
    ]  # fmt: skip
    measured = measure_fluency(policies, model, config)
    for policy, before in zip(measured, policies, strict=True):
        first, second = policy.conversations
        assert first.log_likelihood == pytest.approx(
            plainly(model, before.conversations[0].trajectory), abs=1e-5
        )
        assert second.log_likelihood is None
