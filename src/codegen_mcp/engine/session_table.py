"""The sessions that are there: looked up, described, and changed where no other one is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from codegen_mcp.engine.base import Capacity, SessionView
from codegen_mcp.engine.pause import not_found
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_checks import check_idle_timeout
from codegen_mcp.engine.session_edits import change_idle_timeout, change_metadata
from codegen_mcp.tools.base import Workspace

LIST_MAX_AGE_S = 1.0
"""Counters in a list of many sessions may be this old."""


class SessionTable:
    """The half of ``engine.base.Sessions`` that makes and ends none; the pool is the other half."""

    def __init__(self, config: SessionPoolConfig) -> None:
        """Be empty; ``config`` bounds what a session may be changed to."""
        self._config = config
        self._sessions: dict[str, Session] = {}
        """By id; those that are being destroyed too."""

    @property
    def living(self) -> Sequence[Session]:
        """Sessions that are not being destroyed."""
        return [session for session in self._sessions.values() if not session.ending]

    def session(self, session_id: str) -> Session:
        """Return a session, for the task executor.

        Raises:
            NotFound: There is none.
        """
        try:
            return self._sessions[session_id]
        except KeyError:
            raise not_found(session_id) from None

    def get(self, session_id: str) -> SessionView:
        """Describe a session as it is now."""
        return self.session(session_id).view()

    def list(self) -> Sequence[SessionView]:
        """Describe all, oldest first."""
        return self._views(LIST_MAX_AGE_S)

    def _views(self, max_age_s: float) -> Sequence[SessionView]:
        sessions = sorted(self._sessions.values(), key=lambda one: one.age_s, reverse=True)
        return [session.view(max_age_s=max_age_s) for session in sessions]

    def capacity(self, *, measured: bool = True) -> Capacity:
        """Room on this worker."""
        return Capacity(
            total=self._config.max_sessions,
            active=len(self._sessions),
            sessions=self._views(LIST_MAX_AGE_S if measured else math.inf),
        )

    def workspace(self, session_id: str) -> Workspace:
        """Return a session's files."""
        (session := self.session(session_id)).check_open()
        return session.workspace

    def metadata(self, session_id: str) -> Mapping[str, str]:
        """Return a session's metadata."""
        return self.session(session_id).metadata

    async def update_metadata(
        self, session_id: str, metadata: Mapping[str, str], *, replace: bool
    ) -> Mapping[str, str]:
        """Merge or replace; on disk when answered."""
        return await change_metadata(self.session(session_id), metadata, replace=replace)

    async def set_idle_timeout(self, session_id: str, seconds: float) -> None:
        """Change after how long without use it is destroyed; on disk when answered."""
        checked = check_idle_timeout(seconds, self._config.max_idle_timeout_s)
        await change_idle_timeout(self.session(session_id), checked)
