"""What a session that comes from a checkpoint asks for, and what it has lost."""

from __future__ import annotations

import time

from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.session import Durability, SessionConfig


def config_of(info: CheckpointInfo) -> SessionConfig:
    """What a session must ask for to be as it was."""
    return SessionConfig(
        workspace_id=info.workspace_id,
        user_id=info.user_id,
        language=info.interpreter,
        env=dict(info.env),
        limits=info.limits,
        metadata=dict(info.metadata),
        idle_timeout_s=info.idle_timeout_s or None,
        auto_restore=info.auto_restore,
        allow_network=info.allow_network,
        allow_hosts=tuple(info.allow_hosts),
        durability=_durability(info),
        checkpoint_interval_s=None
        if info.checkpoint_interval_s < 0
        else info.checkpoint_interval_s,
    )


def _durability(info: CheckpointInfo) -> Durability:
    try:
        return Durability(info.durability)
    except ValueError:
        raise WrongState(
            f"checkpoint {str(info.checkpoint_id)!r} has the durability {info.durability[:80]!r}, "
            "which this version does not know; use the version that wrote it, or a newer one",
            reason="FORMAT_TOO_NEW",
        ) from None


def lost_since(info: CheckpointInfo) -> str:
    """Say what a session loses that goes back to a checkpoint."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(info.created_at_ms / 1000))
    return (
        f"everything that was done after the checkpoint of {at} UTC (files, packages, results), "
        "and every running process"
    )
