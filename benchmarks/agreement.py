"""That both sides compute the same: one batch through TRL's `_compute_loss` and through ours.

A child of `processes.Side` that answers once. Same model in float32, same adapter (drawn at random,
so that it does something), same tokens, same advantages, and old log-probs that differ from the
present ones, so that ratios and clipping count.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import torch

from benchmarks.batches import random_batch
from benchmarks.processes import Requests
from benchmarks.trl_step import make_trainer
from benchmarks.workloads import EndlessTokenizer, Workload
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.objective import objective_of, weighted_loss
from stateset_agents.training.policy import Policy

# Old log-probs lie this far (standard deviation, nats) from the present ones: some are clipped.
_STALENESS = 0.2


def main() -> None:
    """Compute both losses and gradient norms, and answer with them."""
    requests = Requests()
    settings = requests.settings()
    workload = Workload(**settings["workload"])
    # one small group: what is compared does not depend on the number of rows, and TRL's logits in
    # float32 for eight long rows, with their gradients, are more than 20 GB
    group = min(workload.group, 4)
    workload = replace(workload, group=group, rows=group)
    config = TrainingConfig(algorithm="grpo", use_lora=True, bf16=False)
    policy = Policy(load_model(settings["folder"], dtype="float32"), config)
    _draw_adapter(policy)
    batch = random_batch(workload, policy.model.config.vocab_size)
    batch = _with_old_logprobs(policy, batch)
    ours, norm = _our_loss(policy, batch, config)
    theirs, their_norm = _trl_loss(settings, workload, policy, batch)
    requests.answer(
        {
            "loss": ours,
            "trl_loss": theirs,
            "difference": abs(ours - theirs),
            "gradient_norm": norm,
            "trl_gradient_norm": their_norm,
            "gradient_difference": abs(norm - their_norm) / their_norm,
        }
    )


@torch.no_grad()
def _draw_adapter(policy: Policy) -> None:
    draw = torch.Generator().manual_seed(0)
    for parameter in policy.trainable.values():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)
    policy.refresh()


@torch.no_grad()
def _with_old_logprobs(policy: Policy, batch: TrainingBatch) -> TrainingBatch:
    present = batch_logprobs(policy, batch, share_prefix=True).logprobs.float()
    noise = torch.randn(present.shape, generator=torch.Generator().manual_seed(1)) * _STALENESS
    old = (present + noise) * batch.loss_mask
    # equal sampling log-probs: the correction for their difference, which TRL lacks here, is 1
    return replace(batch, old_logprobs=old, sampling_logprobs=old)


def _our_loss(policy: Policy, batch: TrainingBatch, config: TrainingConfig) -> tuple[float, float]:
    policy.train_mode(True)
    logprobs = batch_logprobs(policy, batch, share_prefix=True).logprobs
    loss, _ = weighted_loss(logprobs, batch, objective_of(config))
    loss.backward()
    return loss.item(), _norm(list(policy.trainable.values()))


def _trl_loss(
    settings: dict[str, Any], workload: Workload, policy: Policy, batch: TrainingBatch
) -> tuple[float, float]:
    exact = {"dtype": "float32", "autocast": False, "micro_batch_rows": workload.rows}
    settings = {**settings, "trl": {**settings["trl"], **exact}}
    tokenizer = EndlessTokenizer(load_tokenizer(settings["folder"]).hf)
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(settings, workload, tokenizer, output)
        model: Any = trainer.model
        trained = _copy_adapter(policy, model)
        model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(model, _trl_inputs(batch, workload.prompt_tokens))
        loss.backward()
    return loss.item(), _norm(trained)


def _copy_adapter(policy: Policy, model: torch.nn.Module) -> list[torch.Tensor]:
    theirs = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            theirs[f"base_model.model.{name}"].copy_(parameter)
    if len(theirs) != len(policy.trainable):
        raise RuntimeError("TRL trains other parameters than we do: the check compares nothing")
    return list(theirs.values())


def _trl_inputs(batch: TrainingBatch, prompt: int) -> dict[str, torch.Tensor]:
    completion_ids = batch.token_ids[:, prompt:]
    assert batch.old_logprobs is not None  # `_with_old_logprobs` has set them
    return {
        "prompt_ids": batch.token_ids[:, :prompt],
        "prompt_mask": torch.ones_like(batch.token_ids[:, :prompt]),
        "completion_ids": completion_ids,
        "completion_mask": torch.ones_like(completion_ids),
        "tool_mask": batch.loss_mask[:, prompt:].long(),
        "advantages": batch.advantages.abs().amax(1) * batch.advantages.sum(1).sign(),
        "old_per_token_logps": batch.old_logprobs[:, prompt:],
        "num_items_in_batch": batch.loss_mask.sum(),
    }


def _norm(parameters: list[Any]) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad.float() for p in parameters]))


if __name__ == "__main__":
    main()
