"""What a good answer must do, checkable without a model.

Owns the rubric's schema and how an item is checked against an assistant's words. It does not know
files (room `data` reads them) nor weights between rewards (`core.reward`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RubricKind = Literal["ask_for", "state_fact", "acknowledge", "stay_in_scope", "must_not"]


class RubricItem(BaseModel):
    """One thing an answer must do, or must not.

    `any_of` are alternatives. Each alternative is a list of words or phrases that must all occur in
    *one* sentence of the answer (case and punctuation are ignored, phrases match on word borders,
    a phrase may hold `|` between variants: `"30 days|thirty days"`).
    - `ask_for`: the sentence asks (a question, or a request such as "please send").
    - `state_fact`: the sentence states (it is not a question).
    - `acknowledge`: the sentence answers what the user said or felt.
    - `stay_in_scope`: the sentence leads back to what the shop can do.
    - `must_not`: no sentence says this, unless it denies it ("we cannot refund ...").
    `turn` counts assistant turns from 0; None means any turn (for `must_not`: every turn).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: RubricKind
    description: str = Field(min_length=3)
    any_of: tuple[tuple[str, ...], ...] = Field(min_length=1)
    turn: int | None = Field(default=None, ge=0)
    weight: float = Field(default=1.0, gt=0)


class Rubric(BaseModel):
    """All items of one scenario; at least one of them must be something to *do*."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: tuple[RubricItem, ...] = Field(min_length=1)
