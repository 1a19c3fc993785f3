"""What one session trusts in runs with secrets: its own authority beside the system's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from codegen_mcp.egress.authority import Authority
from codegen_mcp.egress.config import EgressConfig

BUNDLE = "ca.pem"


class SessionTrust:
    """The session's authority, and the file of certificates that its sandbox reads.

    Args:
        config: Names the system's authorities and the operator's.
        directory: Returns the host directory that the sandbox has mounted read-only.
    """

    def __init__(self, config: EgressConfig, directory: Callable[[], Path]) -> None:
        self._config = config
        self._directory = directory
        self._written = False

    @cached_property
    def authority(self) -> Authority:
        """Made when it is first needed."""
        return Authority()

    async def ready(self) -> None:
        """Have the file where the sandbox finds it."""
        if not self._written:
            await asyncio.to_thread(self._write)
            self._written = True

    def _write(self) -> None:
        """Write certificates; the key stays in memory."""
        known = [path for path in (self._config.trust, self._config.ca_file) if path is not None]
        read = [path.read_bytes() for path in known if path.exists()]
        target = self._directory() / BUNDLE
        draft = target.with_suffix(".new")
        draft.write_bytes(b"\n".join([self.authority.pem, *read]))
        os.chmod(draft, 0o644)
        os.replace(draft, target)
