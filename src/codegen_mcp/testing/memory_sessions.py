"""Sessions in memory: the second implementation of ``engine.base.Sessions``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from codegen_mcp.core.errors import (
    AlreadyExists,
    Conflict,
    Draining,
    Full,
    InvalidRequest,
    NotFound,
    WrongState,
)
from codegen_mcp.core.ids import check_session_id, new_session_id
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.base import Capacity, SessionView
from codegen_mcp.engine.session_checks import check_network
from codegen_mcp.testing.memory_workspace import MemoryWorkspace

MAX_FORKS = 64


class MemorySessions:
    """Sessions in a dictionary."""

    def __init__(self, max_sessions: int) -> None:
        self._max = max_sessions
        self._views: dict[str, SessionView] = {}
        self._workspaces: dict[str, MemoryWorkspace] = {}
        self.environments: dict[str, Mapping[str, str]] = {}
        self.idle_timeouts: dict[str, float] = {}
        self.default_limits = ResourceLimits()
        self.ownership = MemoryOwnership(self._views)
        self.draining = False

    async def create(self, config: SessionConfig) -> SessionView:
        """Add one."""
        check_network(None, config)
        with self.ownership.claimed([config.session_id] if config.session_id else []):
            self.check_room(1)
        view = self.view_of(config.session_id or new_session_id(), config)
        if config.idle_timeout_s is not None:
            self.idle_timeouts[view.session_id] = config.idle_timeout_s
        self.put(view, MemoryWorkspace(view.limits.disk_bytes), config.env)
        return view

    def view_of(self, session_id: str, config: SessionConfig, **values: Any) -> SessionView:
        """Return a fresh session as it would be seen, and ``values`` of it; it is not kept."""
        now = time.time_ns() // 1_000_000
        limits = config.limits or self.default_limits
        return SessionView(
            **{"incarnation": 1, "epoch": config.epoch, **values},
            session_id=session_id,
            workspace_id=config.workspace_id,
            user_id=config.user_id,
            workspace_path="/workspace",
            state=SessionState.READY,
            created_at_ms=now,
            last_activity_ms=now,
            active_tasks=0,
            usage=Usage(),
            metadata=dict(config.metadata),
            recent_tasks=(),
            limits=limits,
            isolation={"sandbox": "none"},
            language=config.language or "python",
            auto_restore=config.auto_restore,
            durability=config.durability,
            checkpoint_interval_s=config.checkpoint_interval_s or 0.0,
        )

    def put(self, view: SessionView, workspace: MemoryWorkspace, env: Mapping[str, str]) -> None:
        """Let a session be as given, whether there was one of its id or not."""
        self._views[view.session_id] = view
        self._workspaces[view.session_id] = workspace
        self.environments[view.session_id] = dict(env)

    def check_room(self, count: int) -> None:
        """Refuse when so many more do not fit."""
        if self.draining:
            raise Draining("the engine takes no new work")
        if len(self._views) + count > self._max:
            raise Full(
                f"{len(self._views)} of {self._max} sessions are in use; destroy one or retry "
                "later",
                retry_after_s=1.5,
            )

    async def fork(
        self, session_id: str, count: int, *, new_ids: Sequence[str] = ()
    ) -> Sequence[SessionView]:
        """Copy entries."""
        view = self.get(session_id)
        if not 1 <= count <= MAX_FORKS:
            raise InvalidRequest(f"count={count!r} must be 1 to {MAX_FORKS}")
        if new_ids and len(new_ids) != count:
            raise InvalidRequest(f"{len(new_ids)} ids for {count} copies")
        refuse_busy(view)
        with self.ownership.claimed(new_ids):
            self.check_room(count)
        made = []
        for number in range(count):
            now = time.time_ns() // 1_000_000
            copy = replace(
                view,
                session_id=new_ids[number] if new_ids else new_session_id(),
                epoch=1,
                state=SessionState.READY,
                created_at_ms=now,
                last_activity_ms=now,
                recent_tasks=(),
                incarnation=1,
            )
            entries = self._workspaces[session_id].entries
            workspace = MemoryWorkspace(view.limits.disk_bytes, entries)
            self.put(copy, workspace, self.environments[session_id])
            if session_id in self.idle_timeouts:
                self.idle_timeouts[copy.session_id] = self.idle_timeouts[session_id]
            made.append(copy)
        return made

    async def destroy(self, session_id: str, *, force: bool) -> None:
        """Drop one."""
        self.get(session_id)
        del self._views[session_id], self._workspaces[session_id], self.environments[session_id]

    def get(self, session_id: str) -> SessionView:
        """Look one up."""
        view = self._views.get(session_id)
        if view is None:
            raise NotFound(
                f"there is no session {session_id[:80]!r}; create one",
                reason="SESSION_NOT_FOUND",
            )
        used = self._workspaces[session_id].used_bytes
        return replace(view, usage=replace(view.usage, disk_bytes=used))

    def list(self) -> Sequence[SessionView]:
        """All."""
        return [self.get(session_id) for session_id in self._views]

    def capacity(self, *, measured: bool = True) -> Capacity:
        """Counts."""
        return Capacity(total=self._max, active=len(self._views), sessions=self.list())

    def workspace(self, session_id: str) -> MemoryWorkspace:
        """Its files."""
        self.get(session_id)
        return self._workspaces[session_id]

    def metadata(self, session_id: str) -> Mapping[str, str]:
        """Its metadata."""
        return self.get(session_id).metadata

    async def update_metadata(
        self, session_id: str, metadata: Mapping[str, str], *, replace: bool
    ) -> Mapping[str, str]:
        """Merge or replace."""
        before = self.metadata(session_id)
        whole = dict(metadata) if replace else {**before, **metadata}
        self._change(session_id, metadata=whole)
        return whole

    async def set_idle_timeout(self, session_id: str, seconds: float) -> None:
        """Note it; nothing is ever cleaned up here."""
        self.get(session_id)
        self.idle_timeouts[session_id] = seconds

    def task_changed(self, session_id: str, task_id: str, more: int) -> None:
        """Note that a task began (1) or ended (-1)."""
        view = self._views.get(session_id)
        if view is not None:
            active = view.active_tasks + more
            recent = [task_id, *(other for other in view.recent_tasks if other != task_id)][:20]
            state = SessionState.BUSY if active else SessionState.IDLE
            self._change(session_id, recent_tasks=recent, active_tasks=active, state=state)

    def _change(self, session_id: str, **values: Any) -> None:
        now = time.time_ns() // 1_000_000
        self._views[session_id] = replace(self._views[session_id], last_activity_ms=now, **values)


class MemoryOwnership:
    """Their epochs."""

    def __init__(self, views: dict[str, SessionView]) -> None:
        self._views = views
        self._fenced: dict[str, int] = {}

    def held(self) -> Mapping[str, int]:
        """Of each."""
        return {session_id: view.epoch for session_id, view in self._views.items()}

    def check(self, session_id: str, epoch: int) -> None:
        """Compare."""
        held = self.held().get(session_id, epoch)
        if held != epoch or epoch <= self._fenced.get(session_id, 0):
            raise Conflict(
                f"session {session_id!r} is held under another epoch than {epoch}",
                reason="STALE_EPOCH",
            )

    @contextmanager
    def claimed(self, session_ids: Sequence[str], epoch: int = 1) -> Iterator[None]:
        """Refuse what is there."""
        for session_id in map(check_session_id, session_ids):
            if session_id in self._views or session_ids.count(session_id) > 1:
                raise AlreadyExists(f"session {session_id!r} is here", reason="SESSION_EXISTS")
            self.check(session_id, epoch)
        yield

    async def grant(self, session_id: str, epoch: int) -> None:
        """Raise it."""
        view = self._views.get(session_id)
        if view is not None and view.epoch < epoch:
            self._views[session_id] = replace(view, epoch=epoch)

    async def fence(self, session_id: str, epoch: int) -> None:
        """Drop it."""
        if self.held().get(session_id, 0) <= epoch:
            self._fenced[session_id] = epoch
            self._views.pop(session_id, None)


def refuse_busy(view: SessionView) -> None:
    """Refuse while tasks are under way."""
    if view.active_tasks:
        raise WrongState(
            f"session {view.session_id!r} has {view.active_tasks} tasks under way; wait for them "
            "or cancel them",
            reason="SESSION_BUSY",
        )
