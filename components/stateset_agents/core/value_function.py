"""The value function: from a model's hidden states to what is still to be gained, and advantages.

Owns the head that estimates and the checks of its sizes. The recursion over time is
`value_estimates`'s; it knows neither the policy whose states it reads nor the optimizer that trains
it. It needs torch, so nothing that is imported early imports it.

Notation: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

import torch
from torch import nn

from stateset_agents.core.value_estimates import generalized_advantages
from stateset_agents.exceptions import ConfigurationError


class ValueFunction(nn.Module):
    """Estimates, at each sampled token, the discounted reward that follows it.

    `value = w . h + b`, in float32 whatever the states are in, with h the policy's last hidden
    state there. Both begin at 0: at first every advantage is the discounted reward itself, and no
    random number is drawn. It can be made before any model is known; whether its `hidden_size` is
    the model's shows `check_fits`, and the trainer asks.

    A subclass may set another `head` (any module from `(..., H)` to `(..., 1)`), or override
    `values` or `advantages`.

    Args:
        hidden_size: H, the model's `hidden_size`: 768 for gpt2, 576 for SmolLM2-135M.
        gamma: discount of what comes a sampled token later, in [0, 1]. 1: no discount.
        gae_lambda: decay of the trace, in [0, 1]. 0: a step ahead alone (low variance, as biased
            as the values are); 1: all that was earned less the value (no bias, high variance).

    Raises:
        ConfigurationError: a number out of its range, all of them in one message.
    """

    def __init__(
        self, hidden_size: int = 768, gamma: float = 0.99, gae_lambda: float = 0.95
    ) -> None:
        problems = []
        if not isinstance(hidden_size, int) or hidden_size < 1:
            problems.append(
                f"hidden_size={hidden_size!r}: a whole number of at least 1, the model's hidden "
                "size (768 for gpt2)"
            )
        problems += [
            f"{name}={value!r}: a number from 0 to 1"
            for name, value in (("gamma", gamma), ("gae_lambda", gae_lambda))
            if not _is_share(value)
        ]
        if problems:
            raise ConfigurationError([f"ValueFunction: {problem}" for problem in problems])
        super().__init__()
        self.hidden_size = hidden_size
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        with torch.random.fork_rng(devices=[]):  # the head's own start is overwritten
            self.head: nn.Module = nn.Linear(hidden_size, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def check_fits(self, hidden_size: int, model: str = "the model") -> None:
        """Compare with the hidden size of the model that is about to be trained.

        Raises:
            ConfigurationError: they differ.
        """
        if hidden_size != self.hidden_size:
            raise ConfigurationError(
                f"ValueFunction(hidden_size={self.hidden_size}) does not fit {model}, whose hidden "
                f"states have {hidden_size} numbers: make it ValueFunction(hidden_size="
                f"{hidden_size})"
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same as `values`."""
        return self.values(hidden_states)

    def values(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Estimates `(B, T)` float32 from the policy's last hidden states `(B, T, H)`; any leading
        shape will do. Gradients reach the head and, if they carry any, the states.

        Raises:
            ConfigurationError: the states are not H wide.
        """
        self.check_fits(hidden_states.shape[-1], "these states")
        estimated: torch.Tensor = self.head(hidden_states.float())
        return estimated.squeeze(-1)

    @torch.no_grad()
    def advantages(
        self, rewards: torch.Tensor, values: torch.Tensor, loss_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns (what `values` should have been), each `(B, T)`, without gradient.

        Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16) with
        `gamma` and `gae_lambda`. It goes from one sampled token to the next: what the user says in
        between is no action, takes no discount, and may hold anything.

        Args:
            rewards: `(B, T)`, what was earned at each token; a reward for a whole conversation
                stands at its last sampled one.
            values: `(B, T)`, from `values`.
            loss_mask: `(B, T)`, True where the policy sampled the token. None: everywhere.
        """
        sampled = torch.ones_like(values, dtype=torch.bool) if loss_mask is None else loss_mask
        return generalized_advantages(
            rewards.to(values.dtype),
            values.detach(),
            sampled,
            discount=self.gamma,
            trace_decay=self.gae_lambda,
        )

    def loss(
        self, values: torch.Tensor, returns: torch.Tensor, loss_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Half the mean squared error over the sampled tokens, a scalar; 0 where there are none.

        Args:
            values: `(B, T)` with gradients, from `values`.
            returns: `(B, T)`, from `advantages`.
            loss_mask: as there.
        """
        sampled = torch.ones_like(values, dtype=torch.bool) if loss_mask is None else loss_mask
        error = values[sampled] - returns[sampled].to(values.dtype)
        return 0.5 * error.square().sum() / max(1, error.numel())

    def extra_repr(self) -> str:
        """What `repr` shows beside the head."""
        return f"hidden_size={self.hidden_size}, gamma={self.gamma}, gae_lambda={self.gae_lambda}"


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
