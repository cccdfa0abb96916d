"""The warm start: answers are imitated, to the token that ends them, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.loading import load_tokenizer
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.demonstrations import Demonstration, demonstration_batch
from stateset_agents.training.trainer import Trainer
from tests.training.made import gradient_of, make_learner_for, widen
from tests.training.runs import make_trainer, train

ASKED = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"})
ANSWERS = ("What is your order number?", "It is on its way.", "Please wait a day.")
DEMONSTRATIONS = tuple(Demonstration(ASKED, answer) for answer in ANSWERS)


class Losses(TrainingCallback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    async def on_warm_start_step(self, trainer: Trainer, step: int, loss: float) -> None:
        self.seen.append(loss)


def config(**settings: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"warm_start_batch_size": 3, **settings})


def test_an_answer_and_the_token_that_ends_it_are_imitated_and_nothing_else(
    tiny_model_dir: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)

    batch = demonstration_batch(DEMONSTRATIONS, 0, tokenizer, config())

    imitated = {
        tokenizer.hf.decode(ids[mask])
        for ids, mask in zip(batch.token_ids, batch.loss_mask, strict=True)
    }
    assert imitated == {f"{answer}<|im_end|>" for answer in ANSWERS}
    conversation = [*ASKED, {"role": "assistant", "content": ANSWERS[0]}]
    whole = tokenizer.render(conversation, add_generation_prompt=False)
    rows = [
        row[:length].tolist()
        for row, length in zip(batch.token_ids, batch.row_lengths, strict=True)
    ]
    assert any(row == whole[: len(row)] for row in rows)


def test_every_demonstration_is_seen_once_before_any_is_seen_again(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    settings = config(warm_start_batch_size=1)

    seen = [
        tokenizer.decode(batch.token_ids[0][batch.loss_mask[0]].tolist())
        for batch in (demonstration_batch(DEMONSTRATIONS, n, tokenizer, settings) for n in range(3))
    ]

    assert sorted(seen) == sorted(ANSWERS)


def test_the_gradient_is_that_of_the_mean_negative_log_likelihood(tiny_model_dir: Path) -> None:
    learner = widen(make_learner_for(tiny_model_dir, use_lora=True))
    tokenizer = load_tokenizer(tiny_model_dir)
    batch = demonstration_batch(DEMONSTRATIONS, 0, tokenizer, config())
    policy = learner.policy

    logits = policy.model(input_ids=batch.token_ids).logits[:, :-1]
    wanted = batch.loss_mask[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[wanted], batch.token_ids[:, 1:][wanted])
    names = list(policy.trainable)
    expected = dict(
        zip(names, torch.autograd.grad(loss, [policy.trainable[n] for n in names]), strict=True)
    )

    found = gradient_of(learner, replace(batch, temperature=1.0))
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient.to(found[name].dtype), rtol=1e-4, atol=1e-7
        )


def test_a_warm_start_makes_the_demonstrated_answers_likelier(tiny_model_dir: Path) -> None:
    losses = Losses()
    trainer = make_trainer(
        tiny_model_dir,
        num_episodes=1,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        warm_start_steps=12,
        warm_start_batch_size=3,
        demonstrations=DEMONSTRATIONS,
    )

    train(trainer, [losses])

    assert len(losses.seen) == 12
    assert losses.seen[-1] < 0.7 * losses.seen[0]


def test_a_warm_start_without_demonstrations_is_refused_at_once(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"warm_start_steps=3 needs demonstrations"):
        make_trainer(tiny_model_dir, warm_start_steps=3)
