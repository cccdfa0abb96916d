"""float16: the loss scale worked by hand, gradients held to float32's, overflow made good."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from stateset_agents.inference.loading import has_native_float16, load_model
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.policy import Policy
from stateset_agents.training.precision import LossScale, computing_dtype
from stateset_agents.training.step import Learner, make_learner, train_step
from tests.training.made import make_advantages, make_rows, to_batch

ROWS = make_rows()


def _parameter(*gradient: float) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(len(gradient)))
    parameter.grad = torch.tensor(gradient)
    return parameter


def _learner(folder: Path, **settings: object) -> Learner:
    config = TrainingConfig(
        use_lora=True, bf16=False, kl_sample_rows=0, learning_rate=1e-3, **settings
    )
    return make_learner(Policy(load_model(folder, dtype="float32"), config), config)


def test_gradients_are_divided_by_the_scale_and_it_grows_after_quiet_steps() -> None:
    scale, parameter = LossScale(value=8.0, growth_steps=2), _parameter(16.0, -4.0)

    assert scale.unscale([parameter, torch.nn.Parameter(torch.zeros(1))])
    assert parameter.grad.tolist() == [2.0, -0.5]
    assert scale.value == 8.0
    assert scale.unscale([parameter])
    assert scale.value == 16.0


def test_an_overflow_halves_the_scale_down_to_1_and_asks_for_the_step_again() -> None:
    scale = LossScale(value=4.0)

    assert not scale.unscale([_parameter(torch.inf, 1.0)])
    assert not scale.unscale([_parameter(torch.nan)])
    assert scale.value == 1.0
    # now it is not the scale's fault, and the step's own check speaks
    assert scale.unscale([_parameter(torch.inf)])


def test_a_resumed_scale_goes_on_where_it_was() -> None:
    scale, other = LossScale(value=2.0, growth_steps=3), LossScale(growth_steps=3)
    scale.unscale([_parameter(1.0)])
    scale.unscale([_parameter(1.0)])

    other.load_state_dict(scale.state_dict())
    other.unscale([_parameter(1.0)])

    assert other.value == 4.0


def test_in_float16_the_model_computes_in_it_and_its_gradient_is_float32s(
    tiny_model_dir: Path,
) -> None:
    batch = to_batch(ROWS, make_advantages(ROWS))
    steps = {
        fp16: train_step(_learner(tiny_model_dir, fp16=fp16), batch, rate=1e-3)
        for fp16 in (False, True)
    }
    learner = _learner(tiny_model_dir, fp16=True)

    assert {p.dtype for p in learner.policy.backbone.parameters()} >= {torch.float16}
    assert {p.dtype for p in learner.policy.trainable.values()} == {torch.float32}
    norms = {fp16: result.metrics["grad_norm"] for fp16, result in steps.items()}
    assert norms[True] == pytest.approx(norms[False], rel=0.02)
    assert "loss_scale" in steps[True].metrics
    assert "loss_scale" not in steps[False].metrics


def test_a_step_that_overflows_is_done_again_at_a_lower_scale(tiny_model_dir: Path) -> None:
    batch = to_batch(ROWS, make_advantages(ROWS))
    quiet, loud = _learner(tiny_model_dir, fp16=True), _learner(tiny_model_dir, fp16=True)
    assert loud.loss_scale is not None
    loud.loss_scale.value = 2.0**40

    expected = train_step(quiet, batch, rate=1e-3).metrics["grad_norm"]
    found = train_step(loud, batch, rate=1e-3).metrics

    assert found["loss_scale"] < 2.0**40
    assert found["grad_norm"] == pytest.approx(expected, rel=0.01)
    for name, parameter in loud.policy.trainable.items():
        assert bool(torch.isfinite(parameter).all()), name


def test_fp16_takes_the_place_of_bf16_unless_that_was_set_as_well() -> None:
    assert not TrainingConfig(fp16=True).bf16
    config = TrainingConfig()
    config.fp16 = True
    assert not config.bf16
    with pytest.raises(ValueError, match="bf16=True and fp16=True contradict each other"):
        config.bf16 = True
    with pytest.raises(ValueError, match="contradict each other"):
        TrainingConfig(bf16=True, fp16=True)


def test_where_the_hardware_has_no_float16_it_is_float32_and_a_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = computing_dtype(TrainingConfig(fp16=True), "cpu")

    assert chosen == ("float16" if has_native_float16("cpu") else "float32")
    assert ("fp16=True: this processor" in caplog.text) is (chosen == "float32")
    assert computing_dtype(TrainingConfig(bf16=False), "cpu") == "float32"
    assert computing_dtype(TrainingConfig(fp16=True), "cuda") == "float16"
