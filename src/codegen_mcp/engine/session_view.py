"""What is told of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codegen_mcp.core.limits import Usage
from codegen_mcp.core.session import Durability, SessionState
from codegen_mcp.engine.base import SessionView
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.sandbox.base import WORKSPACE


def make_view(
    record: SessionRecord,
    *,
    state: SessionState,
    last_activity_ms: int,
    active_tasks: int,
    usage: Usage,
    recent_tasks: Sequence[str],
    isolation: Mapping[str, str],
    note: str,
) -> SessionView:
    """Put together what is stored of a session and what it is now."""
    return SessionView(
        session_id=record.session_id,
        workspace_id=record.workspace_id,
        user_id=record.user_id,
        workspace_path=WORKSPACE,
        state=state,
        created_at_ms=record.created_at_ms,
        last_activity_ms=last_activity_ms,
        active_tasks=active_tasks,
        usage=usage,
        metadata=dict(record.metadata),
        recent_tasks=recent_tasks,
        limits=record.limits,
        isolation=isolation,
        incarnation=record.incarnation,
        language=record.interpreter,
        note=note,
        auto_restore=record.auto_restore,
        durability=Durability(record.durability),
        checkpoint_interval_s=record.checkpoint_interval_s,
        restored_from=record.restored_from,
        lost=record.lost,
        allow_network=record.allow_network,
        allow_hosts=record.allow_hosts,
        epoch=record.epoch,
    )
