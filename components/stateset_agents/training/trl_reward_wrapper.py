"""TRL's `RewardTrainer` over our preference pairs: `TRLRewardTrainerWrapper`.

Owns how pairs become a reward that `train` takes. The loss (Bradley-Terry), optimizer and
checkpoints are TRL's. The project's own reward model, with its calibration, is
`reward_model.py`'s.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import ConfigurationError, ModelSourceError
from stateset_agents.inference.loading import (
    check_weights_files,
    has_native_bfloat16,
    load_tokenizer,
)
from stateset_agents.inference.model_names import model_folder
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.trl_config import import_trl, pair_settings
from stateset_agents.training.trl_models import say_less
from stateset_agents.training.trl_pairs import conversational_rows

if TYPE_CHECKING:
    from stateset_agents.inference.chat_template import ChatTokenizer
    from stateset_agents.tracking.loggers import MetricLogger


class SequenceReward(RewardFunction):
    """sigmoid(score) of the whole conversation, of a model with one output.

    Two conversations compare as the model was trained to compare them; what a number means on its
    own it was never told. Beyond `max_length` tokens the oldest are left out.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: ChatTokenizer,
        weight: float = 1.0,
        name: str | None = None,
        *,
        max_length: int = 1024,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def load(
        cls, folder: Path | str, weight: float = 1.0, name: str | None = None
    ) -> SequenceReward:
        """Read what `save` wrote; safetensors only.

        Raises:
            ModelSourceError: the folder is not there, or holds no such model.
        """
        if not Path(folder).is_dir():
            raise ModelSourceError(f"{folder} is not a folder: name one that save() has written")
        check_weights_files(Path(folder))
        model = _classifier(Path(folder))
        return cls(
            model, load_tokenizer(folder), weight, name, max_length=model.config.reward_max_length
        )

    def save(self, folder: Path | str) -> None:
        """Write the model and its tokenizer."""
        self.model.config.reward_max_length = self.max_length
        self.model.save_pretrained(folder)
        self.tokenizer.hf.save_pretrained(folder)

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        """Score one conversation."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = self.tokenizer.hf.apply_chat_template(messages, tokenize=False)
        ids = self.tokenizer.hf.encode(text, add_special_tokens=False)[-self.max_length :]
        with torch.no_grad():
            scores = self.model(torch.tensor([ids], device=self.model.device)).logits
        return float(torch.sigmoid(scores[0, 0].float()))


class TRLRewardTrainerWrapper:
    """Trains a reward on preference pairs with TRL's own reward trainer.

    Attributes:
        settings: what TRL's `RewardConfig` is made with.
        trainer: TRL's trainer, None before `train`.
    """

    def __init__(
        self,
        model_name: Path | str,
        preference_data: Iterable[PreferencePair | Mapping[str, Any]],
        config: TrainingConfig,
        *,
        output_dir: Path | str = "outputs/trl",
        callbacks: Sequence[Any] = (),
        logger: MetricLogger | None = None,
        trl_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`model_name` names a language model, whose head is replaced by one output. All its
        weights are trained, in float32: `config.use_lora` has no counterpart here.

        Raises:
            ConfigurationError: TRL is not installed, or settings that it has no counterpart for.
            DataError: what is wrong with the pairs, each named.
        """
        import_trl()
        if config.use_lora:
            raise ConfigurationError(
                "use_lora=True: a reward's new head is trained with all weights here; set "
                "use_lora=False"
            )
        self.model_name = model_name
        self.config = config.model_copy(deep=True)
        self.rows = conversational_rows(preference_data)
        self.settings = pair_settings(
            config, pairs=len(self.rows), trainer="RewardTrainer", overrides=trl_settings or {}
        )
        self.trainer: Any = None
        self._output_dir = Path(output_dir)
        self._callbacks = list(callbacks)
        self._logger = logger

    async def train(self, resume_from: Path | str | None = None) -> SequenceReward:
        """Train to the end and return the reward, for `train` or a `CompositeReward`.

        `resume_from` is a checkpoint of TRL's (`checkpoint-<n>`).
        """
        tokenizer = load_tokenizer(self.model_name)
        self.trainer = self._make_trainer(tokenizer)
        resume = None if resume_from is None else str(resume_from)
        await asyncio.to_thread(self.trainer.train, resume_from_checkpoint=resume)
        return SequenceReward(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            tokenizer,
            max_length=self.settings["max_length"],
        )

    def _make_trainer(self, tokenizer: ChatTokenizer) -> Any:
        trl = import_trl()
        from datasets import Dataset

        cpu = not torch.cuda.is_available()
        args = trl.RewardConfig(
            output_dir=str(self._output_dir),
            use_cpu=cpu,
            **{
                "bf16": self.config.bf16 and has_native_bfloat16("cpu" if cpu else "cuda"),
                **self.settings,
            },
        )
        torch.manual_seed(self.config.seed)  # of the new head
        model = _classifier(model_folder(self.model_name))
        model.config.pad_token_id = tokenizer.pad_token_id
        trainer = trl.RewardTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(self.rows),
            processing_class=copy.deepcopy(tokenizer.hf),
            callbacks=self._callbacks,
        )
        say_less(trainer, self._logger)
        return trainer


def _classifier(folder: Path) -> Any:
    """A model with one output over its last token; a language model's gets a new head."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # a new head is what is wanted
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    finally:
        logging.set_verbosity(level)
