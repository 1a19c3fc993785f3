"""Settings of a worker that joins a coordinator. Part of ``settings.Settings``."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings

AUTO, OFF = "auto", "off"


class LifecycleSettings(BaseSettings):
    """Which coordinator a worker joins, and how it is reached."""

    coordinator_addr: str = ""
    """``host:port`` of the coordinator that this worker joins, or ``unix:/path``; empty: none.
    Its own services then take no other callers."""
    coordinator_token: SecretStr = SecretStr("")
    """Worker token (``codegen-mcp token new --worker``), where the coordinator wants one."""
    coordinator_token_file: str = ""
    """File that has it, instead."""
    advertise_addr: str = AUTO
    """``host:port`` where the coordinator can dial this worker; auto is the address it listens on,
    as far as the coordinator can reach that; off: it cannot, and the worker's TaskStream serves."""

    @field_validator("coordinator_addr", "advertise_addr")
    @classmethod
    def _address(cls, value: str) -> str:
        value = value.strip()
        if value in {"", AUTO, OFF} or value.startswith("unix:"):
            return value
        host, colon, port = value.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("must be like host:50050 or unix:/path")
        return value

    @property
    def worker_auth_token(self) -> str:
        """What the worker shows its coordinator; empty when nothing. Reads the file."""
        if self.coordinator_token_file:
            return Path(self.coordinator_token_file).read_text().strip()
        return self.coordinator_token.get_secret_value().strip()
