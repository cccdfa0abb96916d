"""On one model, with the same tokens and advantages, TRL's trainer and our step agree to 1e-5.

The reference values hold the formulas of losses; this holds everything around them as well: which
log-probs belong to which token, what is masked, how the batch is normalised, what the gradient is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow
from stateset_agents.training.objective import objective_of
from stateset_agents.training.step import Learner, train_step
from tests.training.made import make_advantages, make_learner_for, make_rows, off_policy, to_batch

MAX_COMPLETION_LENGTH = 64
TEMPERATURE = 0.9

# name -> TRL's settings and ours
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"algorithm": "grpo"}),
    "dapo": ({"loss_type": "dapo"}, {"algorithm": "dapo"}),
    "bnpo": ({"loss_type": "bnpo"}, {"algorithm": "bnpo", "clip_range_right": 0.28}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"algorithm": "dr_grpo", "clip_range_right": 0.28}),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.1},
        {"algorithm": "cispo", "clip_range_right": 0.1},
    ),
    "sapo": ({"loss_type": "sapo"}, {"algorithm": "sapo"}),
    "gspo": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
        {"algorithm": "gspo"},
    ),
    "gspo, wide": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"algorithm": "gspo", "clip_range_left": 0.2, "clip_range_right": 0.28},
    ),
    "two-sided clipping": (
        {"loss_type": "grpo", "delta": 1.2},
        {"algorithm": "grpo", "ratio_cap": 1.2},
    ),
}


@pytest.fixture(scope="module")
def trl_trainer(tiny_model_dir: Path, tmp_path_factory: Any) -> Iterator[Callable[..., Any]]:
    """A function of settings that makes a real GRPOTrainer of the tiny model."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    def make(**settings: Any) -> Any:
        config = GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            report_to=[],
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            num_generations=4,
            max_completion_length=MAX_COMPLETION_LENGTH,
            temperature=TEMPERATURE,
            use_bias_correction_kl=False,
            **{"epsilon": 0.2, "epsilon_high": 0.28, **settings},
        )
        trainer = GRPOTrainer(
            model=str(tiny_model_dir),
            args=config,
            reward_funcs=lambda **given: [0.0] * len(given["prompts"]),
            train_dataset=Dataset.from_dict({"prompt": ["Hello"] * 8}),
            processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
        )
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    yield make
    patch.undo()


def two_groups() -> list[StepRow]:
    """Openings of 24 and of 20 tokens, four conversations of three answers each."""
    first = make_rows(groups=1, prefix=24)
    second = make_rows(groups=1, prefix=20, seed=1)
    return first + [replace(row, trajectory=row.trajectory + 4, group=1) for row in second]


def batch_of(learner: Learner) -> TrainingBatch:
    rows = two_groups()
    batch = to_batch(
        rows,
        make_advantages(rows),
        loss_aggregation=objective_of(learner.config).loss_aggregation,
        max_completion_length=MAX_COMPLETION_LENGTH,
        temperature=TEMPERATURE,
    )
    return off_policy(learner, batch)


def trl_inputs(batch: TrainingBatch, pad_token_id: int = 2) -> dict[str, torch.Tensor]:
    """The same batch as TRL has it: prompts padded on the left, completions on the right, with the
    user's words in between masked as a tool's are.
    """
    openings = [int(row.nonzero()[0]) for row in batch.loss_mask]
    lengths = batch.row_lengths.tolist()
    prompt_width = max(openings)
    completion_width = max(
        length - opening for length, opening in zip(lengths, openings, strict=True)
    )

    def completions(values: torch.Tensor) -> torch.Tensor:
        cut = torch.zeros(len(openings), completion_width, dtype=values.dtype)
        for row, opening in enumerate(openings):
            own = values[row, opening : lengths[row]]
            cut[row, : len(own)] = own
        return cut

    prompts = torch.full((len(openings), prompt_width), pad_token_id)
    for row, opening in enumerate(openings):
        prompts[row, prompt_width - opening :] = batch.token_ids[row, :opening]
    places = torch.arange(prompt_width)
    assert batch.old_logprobs is not None
    assert batch.reference_logprobs is not None
    sampled = completions(batch.loss_mask).long()
    return {
        "prompt_ids": prompts,
        "prompt_mask": (places >= prompt_width - torch.tensor(openings)[:, None]).long(),
        "completion_ids": completions(batch.token_ids),
        "completion_mask": completions(torch.ones_like(batch.token_ids)),
        "tool_mask": sampled,
        "advantages": torch.stack(
            [
                advantages[mask][0]
                for advantages, mask in zip(batch.advantages, batch.loss_mask, strict=True)
            ]
        ),
        "old_per_token_logps": completions(batch.old_logprobs),
        "ref_per_token_logps": completions(batch.reference_logprobs),
        "num_items_in_batch": sampled.sum(),
    }


@pytest.mark.parametrize("kl", [0.0, 0.04], ids=["without KL", "with KL"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_norm_are_those_of_trls_trainer(
    tiny_model_dir: Path, trl_trainer: Callable[..., Any], case: str, kl: float
) -> None:
    theirs, ours = CASES[case]
    learner = make_learner_for(tiny_model_dir, kl_coefficient=kl, **ours)
    batch = batch_of(learner)
    trainer = trl_trainer(beta=kl, **theirs)
    trainer.model.train()

    loss = trainer._compute_loss(trainer.model, trl_inputs(batch))
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    metrics = train_step(learner, batch, rate=0.0).metrics

    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 1e-3
