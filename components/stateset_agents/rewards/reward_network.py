"""The reward model: a language model's body with one number as its head.

Owns the network, its folder on disk and how a conversation becomes its tokens. It knows neither
training nor reward functions.

Notation: S sequences, T tokens, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stateset_agents.exceptions import ModelSourceError
from stateset_agents.inference.loading import DtypeName, load_tokenizer, resolve_dtype
from stateset_agents.inference.token_prefix import common_prefix_length
from stateset_agents.rewards.prefix_tree import Pack, pack_sequences

if TYPE_CHECKING:
    from stateset_agents.inference.chat_template import ChatTokenizer

CARD = "reward_model.json"
HEAD = "head.safetensors"


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a raw score becomes a probability: `sigmoid((score - centre) / temperature)`.

    `centre` is the mean raw score of the answers it was calibrated on, so the probability is that
    of being preferred to an answer of middling quality.
    """

    centre: float = 0.0
    temperature: float = 1.0


class RewardNetwork(nn.Module):
    """`score = w . h`, h the body's last hidden state at the conversation's last token.

    Args:
        body: a transformers model without a language-model head.
        head: `(1, H)` weights, kept in float32.
        max_tokens: conversations are cut to it, see `conversation_tokens`.
        calibration: from raw scores to probabilities.
    """

    def __init__(
        self, body: nn.Module, head: nn.Linear, max_tokens: int, calibration: Calibration
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.max_tokens = max_tokens
        self.calibration = calibration

    def score_pack(self, pack: Pack) -> torch.Tensor:
        """Raw scores `(S,)` float32 of a pack's sequences, in the pack's order."""
        device = self.head.weight.device
        hidden = self.body(
            input_ids=pack.token_ids[None].to(device),
            position_ids=pack.positions[None].to(device),
            attention_mask=pack.attention_mask().to(device),
            use_cache=False,
        ).last_hidden_state[0]
        values: torch.Tensor = self.head(hidden[pack.last_nodes.to(device)].float())
        return values.squeeze(-1)

    @torch.inference_mode()
    def score(self, groups: Sequence[Sequence[Sequence[int]]], max_pack_tokens: int) -> list[float]:
        """Raw scores of all sequences, in the order given; those that share beginnings share work.

        Args:
            groups: token sequences, grouped by what they share (see `prefix_tree`).
            max_pack_tokens: the most tokens in one forward pass.
        """
        scores = [0.0] * sum(len(group) for group in groups)
        for pack in pack_sequences(groups, max_pack_tokens):
            values = self.score_pack(pack).tolist()
            for index, value in zip(pack.sequence_indices, values, strict=True):
                scores[index] = value
        return scores

    def save(self, folder: Path, tokenizer: ChatTokenizer) -> None:
        """Write a folder that `load` reads: safetensors, tokenizer, `reward_model.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        body: Any = self.body
        body.save_pretrained(folder)
        tokenizer.hf.save_pretrained(folder)
        save_file({"weight": self.head.weight.detach().float().contiguous()}, folder / HEAD)
        card = {"max_tokens": self.max_tokens, "calibration": asdict(self.calibration)}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")

    @classmethod
    def load(
        cls, folder: Path, dtype: DtypeName | torch.dtype = "auto", device: str = "cpu"
    ) -> RewardNetwork:
        """Read a folder that `save` wrote; nothing is unpickled.

        Raises:
            ModelSourceError: the folder is not there or is not a whole reward model.
        """
        from transformers import AutoModel

        for name in (CARD, HEAD, "config.json"):
            if not (folder / name).is_file():
                raise ModelSourceError(
                    f"{folder} has no {name}, so it is no reward model; "
                    "train one with python -m tasks.train_reward_model"
                )
        try:
            card = json.loads((folder / CARD).read_text())
            calibration = Calibration(**card["calibration"])
            max_tokens = int(card["max_tokens"])
            weight = load_file(folder / HEAD)["weight"]
            body = AutoModel.from_pretrained(
                folder,
                dtype=resolve_dtype(dtype, device),
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
            )
        except Exception as error:  # whatever a broken folder provokes: attribute it
            raise ModelSourceError(
                f"the reward model in {folder} cannot be read: {error}; "
                "train it again with python -m tasks.train_reward_model"
            ) from error
        head = nn.Linear(weight.shape[1], 1, bias=False)
        head.weight.data.copy_(weight)
        return cls(body, head, max_tokens, calibration).to(device).eval()


def load_reward_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer that was saved with a reward model."""
    return load_tokenizer(folder)


def conversation_tokens(
    tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]], max_tokens: int
) -> list[int]:
    """A conversation that ends with an assistant's message as tokens, at most `max_tokens`.

    What is too long loses its oldest messages first, whole, up to the next user message, because
    many templates insist that a user speaks first; the system message never. If system message,
    last question and its answer alone are too long, half of the tokens go to the beginning of the
    system message and the rest to the end of the conversation.
    """
    head = [message for message in messages[:1] if message["role"] == "system"]
    rest = list(messages[len(head) :])
    tokens = tokenizer.render([*head, *rest], add_generation_prompt=False)
    while len(tokens) > max_tokens:
        later = [index for index, message in enumerate(rest) if index and message["role"] == "user"]
        if not later:
            break
        rest = rest[later[0] :]
        tokens = tokenizer.render([*head, *rest], add_generation_prompt=False)
    if len(tokens) <= max_tokens:
        return tokens
    kept = 0
    if head:
        # Rendered with a question: on its own, a system message is refused by many templates.
        asked = tokenizer.render([*head, {"role": "user", "content": "?"}])
        kept = min(common_prefix_length(tokens, asked), max_tokens // 2)
    return tokens[:kept] + tokens[len(tokens) - (max_tokens - kept) :]
