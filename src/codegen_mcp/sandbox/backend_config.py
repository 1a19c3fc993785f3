"""What every backend is given when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.sandbox.base import HostIdentity

if TYPE_CHECKING:
    from codegen_mcp.sandbox.cgroup import CgroupDriver
    from codegen_mcp.sandbox.volumes.base import VolumeDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Facts of the worker; those after ``state`` serve the self-test."""

    guest_directory: Path
    """The guest's program, readable for every session's user."""
    state: Path
    """The worker's state directory; session users can pass through it."""
    interpreter: Interpreter
    """Runs the self-test."""
    identity: HostIdentity | None = None
    """A host user that no session has, for the self-test; None where the worker is not root."""
    neighbour: HostIdentity | None = None
    """Another one, for the neighbour that is attacked; None is the same as ``identity``."""
    guest_identity: HostIdentity | None = None
    """A third, which guests run as where the worker is root: code of sessions is never that."""
    cgroups: CgroupDriver | None = None
    """None where there is none."""
    volumes: VolumeDriver | None = None
    """None: the self-test uses a plain directory, and no disk limit is tested."""
    container_image: str = ""
    """What containers are made from where a session names no image."""
    allow_bare: bool = False
    """The operator accepts a backend that confines nothing."""
