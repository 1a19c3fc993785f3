"""What a sandbox is booted with so that its session can have a way out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from codegen_mcp.egress.config import PORT, TRUST
from codegen_mcp.egress.service import TRUST_DIRECTORY, Egress
from codegen_mcp.sandbox.base import SandboxSpec


class EgressEquipment:
    """Implements ``SandboxEgress``: an entrance, and a directory for what is trusted."""

    def __init__(self, egress: Egress) -> None:
        self._trusts = bool(egress.secrets)

    def equip(self, spec: SandboxSpec, directory: Path) -> SandboxSpec:
        """Add the entrance; and where the worker has secrets, the (empty) directory."""
        binds = dict(spec.read_only)
        if self._trusts:
            place = directory / TRUST_DIRECTORY
            place.mkdir(exist_ok=True)
            os.chmod(place, 0o755)  # its session's user reads it; whoever passes knows the way
            binds[TRUST] = place
        return dataclasses.replace(spec, egress_port=PORT, read_only=binds)
