"""TRL's `DPOTrainer` over our agents: `TRLDPOTrainerWrapper`.

Owns how preference pairs reach TRL and how what it trained reaches the agent. Loss, reference
log-probs, optimizer and checkpoints are TRL's.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.algorithms import PairLoss
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.trl_config import import_trl, pair_settings
from stateset_agents.training.trl_models import (
    adapter_settings,
    computes_in_bf16,
    load_for_trl,
    merged_weights,
    runs_on_cpu,
    say_less,
)
from stateset_agents.training.trl_pairs import conversational_rows

if TYPE_CHECKING:
    from stateset_agents.tracking.loggers import MetricLogger


class TRLDPOTrainerWrapper:
    """Trains an agent on preference pairs with TRL's own DPO trainer.

    Attributes:
        settings: what TRL's `DPOConfig` is made with.
        trainer: TRL's trainer, None before `train`.
    """

    def __init__(
        self,
        agent: MultiTurnAgent,
        preference_data: Iterable[PreferencePair | Mapping[str, Any]],
        config: TrainingConfig,
        *,
        loss: PairLoss = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        output_dir: Path | str = "outputs/trl",
        callbacks: Sequence[Any] = (),
        logger: MetricLogger | None = None,
        trl_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`loss`, `beta` and `label_smoothing` as in `pair_losses.pair_loss`. A batch of `config`
        is of pairs, and its prompts and answers together are cut to `max_prompt_length` +
        `max_completion_length`. `trl_settings` are keywords of `DPOConfig`, over what is derived.

        Raises:
            ConfigurationError: TRL is not installed, or settings that it has no counterpart for.
            DataError: what is wrong with the pairs, each named.
        """
        import_trl()
        if agent.config.use_stub_model:
            raise ConfigurationError(
                "use_stub_model=True: a stub has no weights to train; name a model's folder"
            )
        self.agent = agent
        self.config = config.model_copy(deep=True)
        self.rows = conversational_rows(preference_data)
        self.settings = {
            **pair_settings(config, pairs=len(self.rows), trainer="DPOTrainer", overrides={}),
            "loss_type": [loss],
            "beta": beta,
            "label_smoothing": label_smoothing,
            **(trl_settings or {}),
        }
        self.trainer: Any = None
        self._output_dir = Path(output_dir)
        self._callbacks = list(callbacks)
        self._logger = logger

    async def train(self, resume_from: Path | str | None = None) -> MultiTurnAgent:
        """Train to the end and return the agent, which speaks with the trained weights.

        `resume_from` is a checkpoint of TRL's (`checkpoint-<n>`).
        """
        await self.agent.initialize()
        self.trainer = self._make_trainer()
        resume = None if resume_from is None else str(resume_from)
        await asyncio.to_thread(self.trainer.train, resume_from_checkpoint=resume)
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.agent.engine.update_weights(merged_weights(model))
        return self.agent

    def save(self, folder: Path | str) -> None:
        """Write the adapter (PEFT's format) or the whole model, and the tokenizer.

        Raises:
            ConfigurationError: nothing has been trained.
        """
        if self.trainer is None:
            raise ConfigurationError("there is nothing to save yet: await train() first")
        self.trainer.model.save_pretrained(folder)
        self.agent.tokenizer.hf.save_pretrained(folder)

    def _make_trainer(self) -> Any:
        trl = import_trl()
        from datasets import Dataset

        args = trl.DPOConfig(
            output_dir=str(self._output_dir),
            use_cpu=runs_on_cpu(self.agent),
            **{"bf16": computes_in_bf16(self.agent, self.config), **self.settings},
        )
        trainer = trl.DPOTrainer(
            model=load_for_trl(self.agent, self.config),
            args=args,
            train_dataset=Dataset.from_list(self.rows),
            processing_class=copy.deepcopy(self.agent.tokenizer.hf),
            callbacks=self._callbacks,
            peft_config=adapter_settings(self.config),
        )
        say_less(trainer, self._logger)
        return trainer
