"""A slot: everything of the host that one session occupies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.sandbox.base import HostIdentity, Sandbox
from codegen_mcp.sandbox.cgroup import Cgroup
from codegen_mcp.sandbox.volumes.base import Volume

if TYPE_CHECKING:
    from codegen_mcp.engine.canary import Pristine


@dataclass(frozen=True, slots=True)
class SlotKey:
    """What cannot be changed once a sandbox is booted; the warm pool sorts by it."""

    interpreter: str
    disk_bytes: int
    tmp_bytes: int
    open_files: int
    file_size_bytes: int

    @classmethod
    def of(cls, interpreter: Interpreter, limits: ResourceLimits) -> SlotKey:
        """Return the key that a session with this interpreter and these limits needs."""
        return cls(
            interpreter.name,
            limits.disk_bytes,
            limits.tmp_bytes,
            limits.open_files,
            limits.file_size_bytes,
        )

    def applied_to(self, limits: ResourceLimits) -> ResourceLimits:
        """Return limits that need this key, and are otherwise those given."""
        return dataclasses.replace(
            limits,
            disk_bytes=self.disk_bytes,
            tmp_bytes=self.tmp_bytes,
            open_files=self.open_files,
            file_size_bytes=self.file_size_bytes,
        )


@dataclass(slots=True, kw_only=True)
class Slot:
    """One directory with its volume, host user, control group and, while it lives, sandbox."""

    directory: Path
    interpreter: Interpreter
    limits: ResourceLimits
    """What the control group and the sandbox have now."""
    volume: Volume
    identity: HostIdentity | None
    cgroup: Cgroup | None
    sandbox: Sandbox | None = None
    """None before the first boot of an adopted session."""
    env: dict[str, str] = field(default_factory=dict)
    """What the sandbox was told."""
    cpu_us: int = 0
    """What the sandbox had used when it was booted, or last looked at while it waited."""
    pristine: Pristine | None = None
    """How it was when it was put by to wait; None for one that never waited."""
    used: bool = False
    """It is, or was, a session's: it is never put by again."""

    @property
    def key(self) -> SlotKey:
        """What it can serve."""
        return SlotKey.of(self.interpreter, self.limits)

    def moved(self, directory: Path) -> None:
        """Note that the directory was renamed."""
        self.directory = directory
        self.volume.moved(directory)
        if self.sandbox is not None:
            self.sandbox.moved(directory)
