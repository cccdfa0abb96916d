"""What the policy computes with, and what leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.loading import load_model
from stateset_agents.tracking.merging import merge_adapter
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.policy import Policy
from stateset_agents.training.step import make_learner, train_step
from tests.training.made import (
    make_advantages,
    make_config,
    make_policy,
    make_rows,
    perturb,
    to_batch,
)

ADAPTER = {"use_lora": True, "lora_r": 4}


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits
    return logits


def test_the_merged_forward_is_that_of_peft(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = make_policy(tiny_model_dir, make_config(**ADAPTER))
    perturb(policy)
    policy.save(tmp_path)

    loaded = PeftModel.from_pretrained(load_model(tiny_model_dir, dtype="float32"), tmp_path)

    torch.testing.assert_close(logits_of(policy.model), logits_of(loaded), rtol=1e-5, atol=1e-5)
    base = load_model(tiny_model_dir, dtype="float32")
    assert not torch.allclose(logits_of(policy.model), logits_of(base), rtol=1e-2, atol=1e-2)


def test_merged_weights_make_the_plain_model_the_policy(tiny_model_dir: Path) -> None:
    policy = make_policy(tiny_model_dir, make_config(**ADAPTER))
    perturb(policy)

    plain = load_model(tiny_model_dir, dtype="float32")
    plain.load_state_dict(dict(policy.named_merged_weights()), strict=False)

    assert torch.equal(logits_of(policy.model), logits_of(plain))


@pytest.mark.parametrize("settings", [ADAPTER, {"kl_sample_rows": 1}], ids=["adapter", "full"])
def test_the_reference_stays_what_training_started_from(
    tiny_model_dir: Path, settings: dict[str, object]
) -> None:
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))
    policy = make_policy(tiny_model_dir, make_config(**settings))
    before = batch_logprobs(policy, batch, share_prefix=False).logprobs.detach()
    perturb(policy)

    with policy.reference():
        reference = batch_logprobs(policy, batch, share_prefix=True).logprobs
    after = batch_logprobs(policy, batch, share_prefix=False).logprobs

    torch.testing.assert_close(reference, before)
    assert not reference.requires_grad
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize("settings", [ADAPTER, {}], ids=["adapter", "full"])
def test_an_update_too_small_for_bfloat16_reaches_the_weights_that_compute(
    tiny_model_dir: Path, settings: dict[str, object]
) -> None:
    # one step of 1e-5 on weights of 0.1, whose neighbours in bfloat16 are 5e-4 away
    config = make_config(**settings, bf16=True, max_grad_norm=1e9)
    policy = Policy(load_model(tiny_model_dir, dtype="bfloat16"), config)
    base = {name: value.float().clone() for name, value in policy.named_merged_weights()}
    rows = make_rows()

    train_step(make_learner(policy, config), to_batch(rows, make_advantages(rows)), rate=1e-5)

    exact = make_config(**settings, bf16=False, max_grad_norm=1e9)
    truth = Policy(load_model(tiny_model_dir, dtype="bfloat16"), exact)
    truth.load_trainable({n: value.detach() for n, value in policy.trainable.items()})
    wanted = {name: value - base[name] for name, value in truth.named_merged_weights()}
    found = {name: value.float() - base[name] for name, value in policy.named_merged_weights()}
    along = sum((wanted[name] * found[name]).sum() for name in wanted)
    size = sum(wanted[name].square().sum() for name in wanted)
    to_nearest = sum(
        (wanted[name] * ((base[name] + wanted[name]).bfloat16() - base[name])).sum()
        for name in wanted
    )
    assert 0.8 < float(along / size) < 1.2
    assert float(to_nearest / size) < 0.3


def test_bfloat16_gradients_are_added_up_in_float32(tiny_model_dir: Path) -> None:
    rows = make_rows(groups=4, generations=4)
    batch = to_batch(rows, make_advantages(rows))
    gradients = []
    for dtype, bf16 in (("float32", False), ("bfloat16", True)):
        config = make_config(bf16=bf16, micro_batch_tokens=1, max_grad_norm=1e9)
        policy = Policy(load_model(tiny_model_dir, dtype=dtype), config)  # type: ignore[arg-type]
        learner = make_learner(policy, config)
        learner.optimizer = torch.optim.SGD(policy.trainable.values(), lr=1.0)
        before = {name: value.detach().clone() for name, value in policy.trainable.items()}
        train_step(learner, batch, rate=1.0)
        moved = [before[name] - value.detach() for name, value in policy.trainable.items()]
        assert all(value.dtype == torch.float32 for value in moved)
        gradients.append(torch.cat([value.flatten() for value in moved]))

    full, rounded = gradients
    assert torch.nn.functional.cosine_similarity(full, rounded, dim=0) > 0.99


def test_target_modules_that_the_model_lacks_are_refused_with_those_it_has(
    tiny_model_dir: Path,
) -> None:
    config = make_config(use_lora=True, lora_target_modules=["query"])

    with pytest.raises(ConfigurationError, match=r"\['query'\].*LlamaForCausalLM.*'q_proj'"):
        make_policy(tiny_model_dir, config)


def test_only_the_named_modules_are_adapted(tiny_model_dir: Path) -> None:
    config = make_config(use_lora=True, lora_target_modules=["q_proj", "v_proj"])

    policy = make_policy(tiny_model_dir, config)

    assert {name.split(".")[-4] for name in policy.trainable} == {"q_proj", "v_proj"}
    assert len(list(policy.named_merged_weights())) == 4


def test_a_gpt2_is_adapted_and_merged_though_its_weights_are_transposed() -> None:
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=480, n_positions=128, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(shape)
    base = logits_of(model.eval())
    policy = Policy(model, make_config(**ADAPTER, max_grad_norm=1e9))
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))
    learner = make_learner(policy, make_config(**ADAPTER))

    first = train_step(learner, batch, rate=1e-2)
    second = train_step(learner, batch, rate=0.0)

    torch.manual_seed(0)
    plain = GPT2LMHeadModel(shape).eval()
    plain.load_state_dict(dict(policy.named_merged_weights()), strict=False)
    assert torch.equal(logits_of(policy.model), logits_of(plain))
    assert not torch.allclose(base, logits_of(plain), atol=1e-3)
    assert first.metrics["grad_norm"] > 0
    gain = ((second.logprobs - first.logprobs) * batch.advantages * batch.loss_weights).sum()
    assert gain > 0


def test_a_model_that_changes_its_logits_after_the_head_is_refused() -> None:
    class Capped(GPT2LMHeadModel):
        def forward(self, *args: object, **kwargs: object) -> object:
            result = super().forward(*args, **kwargs)
            result.logits = 3 * torch.tanh(result.logits / 3) + 1
            return result

    model = Capped(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))

    with pytest.raises(ConfigurationError, match="Capped changes its logits"):
        Policy(model, make_config())


def test_the_adapter_s_gradients_are_those_of_peft(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = make_policy(tiny_model_dir, make_config(**ADAPTER))
    perturb(policy)
    policy.save(tmp_path)
    theirs = PeftModel.from_pretrained(
        load_model(tiny_model_dir, dtype="float32"), tmp_path, is_trainable=True
    )

    for model in (policy.model, theirs):
        logits = model(input_ids=torch.arange(40)[None]).logits
        logits[0, -5:].log_softmax(-1)[:, 7].sum().backward()

    expected = {name: value for name, value in theirs.named_parameters() if value.requires_grad}
    assert len(expected) == len(policy.trainable) == 28
    for name, parameter in policy.trainable.items():
        gradient = expected[f"base_model.model.{name}"].grad
        assert parameter.grad is not None
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_registration_merges_to_the_bits_that_were_trained(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_model_dir, dtype="bfloat16")
    model.save_pretrained(tmp_path / "base")
    policy = Policy(model, make_config(**ADAPTER, bf16=True))
    perturb(policy, scale=0.01)
    policy.save(tmp_path / "adapter")

    merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")

    merged = load_model(tmp_path / "merged", dtype="bfloat16").state_dict()
    for name, weight in policy.named_merged_weights():
        assert torch.equal(weight, merged[name]), name
