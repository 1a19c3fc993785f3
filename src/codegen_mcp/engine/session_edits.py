"""Changes of what is stored of a session; on disk when answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_checks import check_metadata
from codegen_mcp.engine.session_record import SessionRecord


async def change_metadata(
    session: Session, metadata: Mapping[str, str], *, replace: bool
) -> Mapping[str, str]:
    """Merge or replace; the whole afterwards."""

    def changed(record: SessionRecord) -> SessionRecord:
        session.check_open()
        whole = dict(metadata) if replace else {**record.metadata, **metadata}
        return dataclasses.replace(record, metadata=check_metadata(whole))

    session.touch()
    await session.save(changed)
    return session.metadata


async def change_idle_timeout(session: Session, seconds: float) -> None:
    """Set after how long without use it is destroyed; ``seconds`` is checked."""

    def changed(record: SessionRecord) -> SessionRecord:
        session.check_open()
        return dataclasses.replace(record, idle_timeout_s=seconds)

    session.touch()
    await session.save(changed)
