"""Settings of the server: the section `serve` of `params.yaml`. Imports no torch, no fastapi.

The API key is not a setting, because params.yaml is in git: it comes from STATESET_API_KEY or from
the command line.
"""

from __future__ import annotations

from pydantic import Field

from stateset_agents.settings import Settings


class ServeConfig(Settings):
    """Where the server listens and how much it takes."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 = every network; set an API key then."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on. 0 = a free one, which the log names."""

    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    """Largest body of a request, bytes; a larger one is answered with 413."""

    max_messages: int = Field(default=200, ge=1)
    """Most messages in one request."""

    max_answer_tokens: int = Field(default=1_024, ge=1)
    """Most tokens that a request may ask for in `max_tokens`."""

    max_requests: int = Field(default=128, ge=1)
    """Most requests that are answered or wait for it at once; what comes beyond is answered with
    503 at once."""

    retry_after_seconds: int = Field(default=2, ge=1)
    """What such an answer tells a client in `Retry-After`. Seconds."""

    follow_seconds: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """How often the registry's alias is looked at; when it has moved, the version that it names now
    answers from then on. Seconds; 0 = never, another version needs another start."""

    shutdown_seconds: int = Field(default=20, ge=0)
    """How long requests under way may take after the server was told to stop. Seconds."""
