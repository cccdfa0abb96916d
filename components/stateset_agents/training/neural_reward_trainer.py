"""The guide's `NeuralRewardTrainer`: from preferences to a reward that `train` takes.

Owns how preferences are shared out into training and held-out ones, and the guide's names. The loss
on pairs is `reward_model`'s (Bradley-Terry), that on rated answers `rated_reward_model`'s (binary
cross entropy); what comes out is `rewards.learned.LearnedReward`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stateset_agents.data.preference_forms import RatedAnswer, parse_preferences
from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import ConfigurationError, DataError, TrainingError
from stateset_agents.rewards.learned import LearnedReward
from stateset_agents.training.rated_reward_model import train_rated_reward_model
from stateset_agents.training.reward_model import (
    MIN_PAIRS,
    TrainedRewardModel,
    train_reward_model,
)
from stateset_agents.training.reward_model_config import RewardModelConfig
from stateset_agents.training.reward_model_fit import Progress

# Of preferences that come without held-out ones, the share that is kept for measuring; of few,
# as many as it takes.
HELDOUT_SHARE = 0.2

_log = logging.getLogger(__name__)

_Preference = TypeVar("_Preference", PreferencePair, RatedAnswer)


class NeuralRewardTrainer:
    """Trains a reward on what people preferred.

    Pairs of a better and a worse answer to the same conversation, or answers that were rated one by
    one; `data.preference_forms` has the forms. The result is a number in (0, 1): the probability
    that an answer is preferred to one of middling quality, or that it is rated good. It is measured
    on preferences that are kept out of training, whole conversations at a time: `metrics`, with
    what the length of answers alone would have told beside it.

    Args:
        model_name: the language model whose body is trained: a folder, or a name.
        preference_data: pairs or rated answers.
        heldout_data: preferences to measure on; None: a fifth of `preference_data`.
        config: how it is trained. None: `RewardModelConfig()` without a floor of accuracy, with
            `settings` over it.
        save_dir: where the trained model is written. None: nowhere (`LearnedReward.save` does it).
        weight: of the reward in a composite.
        on_progress: told the stage, how much of it is done, of how much, and numbers.
        **settings: single settings of `RewardModelConfig`, in place of `config`.

    Attributes:
        metrics: of the last `train`, {} before; `reward_model` has the names for pairs,
            `rated_reward_model` those for rated answers.
        trained: all that was measured, None before.

    Raises:
        DataError: preferences in no form that is known, too few, or of two kinds.
        ConfigurationError: settings that cannot work, or beside a config.
    """

    def __init__(
        self,
        model_name: str | Path,
        preference_data: Iterable[Any],
        *,
        heldout_data: Iterable[Any] | None = None,
        config: RewardModelConfig | None = None,
        save_dir: Path | str | None = None,
        weight: float = 1.0,
        on_progress: Progress | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise ConfigurationError(
                f"NeuralRewardTrainer() got a config and beside it {', '.join(sorted(settings))}: "
                "put them into the config, or leave the config out"
            )
        self.model_name = model_name
        self.config = config or RewardModelConfig(**{"min_heldout_accuracy": 0.0, **settings})
        self.save_dir = None if save_dir is None else Path(save_dir)
        self.weight = weight
        self.metrics: dict[str, float] = {}
        self.trained: TrainedRewardModel | None = None
        self._on_progress = on_progress
        self._given = parse_preferences(preference_data)
        self._heldout = None if heldout_data is None else parse_preferences(heldout_data)
        if self._heldout is None and len(self._given) < 2 * MIN_PAIRS:
            raise DataError(
                f"{len(self._given)} preferences were given; at least {2 * MIN_PAIRS} are needed, "
                f"{MIN_PAIRS} to train on and {MIN_PAIRS} that are kept back to measure on: add "
                "some, or give heldout_data"
            )
        if self._heldout is not None and type(self._heldout[0]) is not type(self._given[0]):
            raise DataError(
                "preference_data and heldout_data are of two kinds, pairs and rated answers: give "
                "both in the same"
            )

    async def train(self) -> LearnedReward:
        """Train, measure, and return the reward; other coroutines go on meanwhile.

        Raises:
            DataError: too few preferences to train and to measure on.
            ModelSourceError: the model cannot be had.
            TrainingError: the loss is not finite, or on held-out pairs (the AUC of held-out rated
                answers) `min_heldout_accuracy` is not reached.
        """
        self.trained = await asyncio.to_thread(self._train)
        self.metrics = dict(self.trained.metrics)
        self._check_floor()
        if self.save_dir is not None:
            self.trained.save(self.save_dir)
        return LearnedReward(self.trained.network, self.trained.tokenizer, self.weight)

    def _train(self) -> TrainedRewardModel:
        folder, report = self.model_name, self._on_progress
        if isinstance(self._given[0], RatedAnswer):
            answers = [one for one in self._given if isinstance(one, RatedAnswer)]
            heldout_answers = [one for one in self._heldout or [] if isinstance(one, RatedAnswer)]
            if self._heldout is None:
                answers, heldout_answers = _share_out(
                    answers, [one.conversation for one in answers], self.config.seed
                )
            return train_rated_reward_model(answers, heldout_answers, folder, self.config, report)
        pairs = [one for one in self._given if isinstance(one, PreferencePair)]
        heldout = [one for one in self._heldout or [] if isinstance(one, PreferencePair)]
        if self._heldout is None:
            pairs, heldout = _share_out(pairs, [_asked(one) for one in pairs], self.config.seed)
        return train_reward_model(pairs, heldout, folder, self.config, report)

    def _check_floor(self) -> None:
        rated = "heldout_auc" in self.metrics
        found = self.metrics["heldout_auc" if rated else "heldout_accuracy"]
        floor = self.config.min_heldout_accuracy
        if found < floor:
            measure = "AUC on held-out answers" if rated else "accuracy on held-out pairs"
            raise TrainingError(
                f"the reward's {measure} is {found:.3f}, and min_heldout_accuracy is {floor:g}: "
                "look at the preferences, add to them, train more layers or epochs, or lower the "
                "floor if such a reward is good enough; `metrics` has what was measured"
            )
        by_length = self.metrics["length_baseline_auc" if rated else "length_baseline_accuracy"]
        if found <= by_length:
            _log.warning(
                "the reward tells held-out answers apart no better than by length alone (%.3f and "
                "%.3f): it is not worth training on yet",
                found,
                by_length,
            )


def _asked(pair: PreferencePair) -> str:
    """Pairs of one conversation stay together."""
    return json.dumps([message.model_dump() for message in pair.prompt], sort_keys=True)


def _share_out(
    given: Sequence[_Preference], conversations: Sequence[str], seed: int
) -> tuple[list[_Preference], list[_Preference]]:
    """Training and held-out preferences, no conversation in both; of one conversation alone (bare
    pairs, which have no question) single preferences.
    """
    names = sorted(set(conversations))
    if len(names) == 1:
        conversations = [str(number) for number in range(len(given))]
        names = sorted(set(conversations))
    random.Random(seed).shuffle(names)
    wanted, kept, count = max(MIN_PAIRS, HELDOUT_SHARE * len(given)), set[str](), 0
    sizes = dict.fromkeys(names, 0)
    for name in conversations:
        sizes[name] += 1
    for name in names:
        if count >= wanted:
            break
        kept.add(name)
        count += sizes[name]
    training = [one for one, name in zip(given, conversations, strict=True) if name not in kept]
    heldout = [one for one, name in zip(given, conversations, strict=True) if name in kept]
    return training, heldout
