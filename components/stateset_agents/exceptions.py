"""The exception tree. Every error that this package raises on purpose is below `StateSetError`.

StateSetError
├── ConfigurationError       a setting, a params.yaml, an argument: every problem in one message
├── DataError                a file of scenarios, preferences or conversations
├── ModelSourceError         a base model that cannot be had
├── EngineError              generation
│   └── ContextLengthError   a prompt and its answer do not fit the model's context
├── RolloutError             every episode of a step failed
├── RewardError              a reward function raised, or gave something that is not a reward
├── TrainingError            the optimisation
│   ├── NonFiniteLossError   NaN or infinity, before the optimizer saw it
│   ├── ProcessLostError     a process of those that train together has ended or does not answer
│   └── CheckpointError      a checkpoint that cannot be written, or that does not fit the run
├── EvaluationError          a comparison that cannot be made
├── RegistryError            the model registry: not reachable, no such version, a lock that is held
├── StorageError             the artifact store (S3 or folder)
├── PipelineError            a step or flow that cannot start: a lock that is held, a missing input
└── ServingError             the server

A message says what was given, what is allowed, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class StateSetError(Exception):
    """The root of everything this package raises on purpose."""


class _ProblemsError(StateSetError):
    """An error that lists every problem found, so that a person repairs them in one go."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(self.problems))


class ConfigurationError(_ProblemsError, ValueError):
    """A setting cannot work. `problems` holds one line for each."""


class DataError(_ProblemsError, ValueError):
    """A data file cannot be used: the file, the row or key, what was found, what is allowed."""


class ModelSourceError(StateSetError):
    """A base model cannot be had from the source that was given."""


class EngineError(StateSetError):
    """Generation failed."""


class ContextLengthError(EngineError):
    """A prompt leaves no room in the model's context for the tokens asked for."""


class RolloutError(StateSetError):
    """Every episode of a step failed, so there is nothing to learn from or to compare."""


class RewardError(StateSetError):
    """A reward function raised, or returned something that is not a finite number."""


class TrainingError(StateSetError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient is NaN or infinite; the optimizer was not stepped."""


class ProcessLostError(TrainingError):
    """One of the processes that train together has ended, or does not answer."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written, or does not belong to this run."""


class EvaluationError(StateSetError):
    """Two policies cannot be compared."""


class RegistryError(StateSetError):
    """The model registry cannot do what was asked."""


class StorageError(StateSetError):
    """The artifact store cannot read or write."""


class PipelineError(StateSetError):
    """A pipeline step or flow cannot start or finish."""


class ServingError(StateSetError):
    """The server cannot start or answer."""
