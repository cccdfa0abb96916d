"""The base of every group of settings: typed, documented, closed to unknown keys.

Each room defines the settings of its own section of `params.yaml` as a subclass; `run_config`
composes them. A setting is a field with a docstring: unit, range, what 0 or None means.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of settings. Unknown keys and wrong types fail, also on later assignment."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
