"""Settings of the coordinator. Part of ``settings.Settings``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings


class CoordinatorSettings(BaseSettings):
    """Where a coordinator listens, what it remembers, and how long it waits."""

    coordinator_port: int = Field(default=50050, ge=0, le=65535)
    """gRPC port of a coordinator, for callers and workers; 0 takes a free one."""
    coordinator_name: str = "coordinator"
    """Its name in answers about all workers together."""
    coordinator_directory: str = ""
    """Who owns which session: ``/path`` or ``sqlite:///path`` of a file on a local disk; empty is
    ``coordinator/directory.sqlite3`` in the state directory. One coordinator at a time."""
    worker_heartbeat_s: float = Field(default=2.0, gt=0, le=3600)
    """How often workers are told to say that they live."""
    worker_lost_after_s: float = Field(default=12.0, gt=0, le=86_400)
    """A worker that was silent for so long is lost; at least three heartbeats."""
    route_wait_s: float = Field(default=15.0, gt=0, le=3600)
    """How long a call waits for the worker of its session to come back, or to be lost."""
    restores_at_once: int = Field(default=4, ge=1, le=1000)
    """Sessions of lost workers that come back by themselves at the same time."""

    @model_validator(mode="after")
    def _heard(self) -> CoordinatorSettings:
        """Refuse to call a worker lost between two of its heartbeats."""
        if self.worker_heartbeat_s * 3 > self.worker_lost_after_s:
            raise ValueError("worker_lost_after_s must be at least three times worker_heartbeat_s")
        return self

    def directory_address(self, state: Path) -> str:
        """Of the directory.

        Args:
            state: The state directory, for the default.
        """
        return self.coordinator_directory or str(state / "coordinator" / "directory.sqlite3")
