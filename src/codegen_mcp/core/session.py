"""What a session is: its configuration, its states, and the moves between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.limits import ResourceLimits


class SessionState(StrEnum):
    """States of the wire, without UNSPECIFIED."""

    INITIALIZING = "initializing"
    READY = "ready"
    """Up, and nothing has run in it yet."""
    BUSY = "busy"
    IDLE = "idle"
    """Up, and it has done work before."""
    DRAINING = "draining"
    CHECKPOINTING = "checkpointing"
    FAILED = "failed"


TRANSITIONS: Mapping[SessionState, frozenset[SessionState]] = {
    SessionState.INITIALIZING: frozenset(
        {SessionState.READY, SessionState.IDLE, SessionState.FAILED, SessionState.DRAINING}
    ),
    SessionState.READY: frozenset(
        {
            SessionState.BUSY,
            SessionState.CHECKPOINTING,
            SessionState.DRAINING,
            SessionState.FAILED,
        }
    ),
    SessionState.BUSY: frozenset(
        {
            SessionState.IDLE,
            SessionState.CHECKPOINTING,
            SessionState.DRAINING,
            SessionState.FAILED,
        }
    ),
    SessionState.IDLE: frozenset(
        {
            SessionState.BUSY,
            SessionState.CHECKPOINTING,
            SessionState.DRAINING,
            SessionState.FAILED,
        }
    ),
    SessionState.CHECKPOINTING: frozenset(
        {
            SessionState.READY,
            SessionState.BUSY,
            SessionState.IDLE,
            SessionState.DRAINING,
            SessionState.FAILED,
        }
    ),
    SessionState.FAILED: frozenset({SessionState.DRAINING, SessionState.INITIALIZING}),
    SessionState.DRAINING: frozenset(),
}
"""Allowed moves. DRAINING ends the session; FAILED may be booted anew with its files kept."""


def check_transition(current: SessionState, to: SessionState) -> None:
    """Allow a move that the table has.

    Raises:
        WrongState: The table has no such move.
    """
    if to not in TRANSITIONS[current]:
        raise WrongState(f"a session that is {current} cannot become {to}")


class Durability(StrEnum):
    """When a session is saved without being asked."""

    INTERVAL = "interval"
    """At times, while it is changed (``checkpoint_interval_s``)."""
    TURN = "turn"
    """Also each time it has become idle."""
    SYNC = "sync"
    """A task's result is told only once what it did is saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """What a caller asks for when it creates a session."""

    workspace_id: str = ""
    user_id: str = ""
    language: str = ""
    """``python``, ``python3.12``, ...; empty is the worker's default."""
    env: Mapping[str, str] = field(default_factory=dict)
    limits: ResourceLimits | None = None
    """None is the worker's default limits (``Sessions.default_limits``)."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    idle_timeout_s: float | None = None
    """None is the worker's default."""
    auto_restore: bool = False
    """Restore it from its last checkpoint when its files are lost, instead of ending it."""
    durability: Durability = Durability.INTERVAL
    checkpoint_interval_s: float | None = None
    """None is the worker's default."""
    allow_network: bool = False
    """Its tasks have the network without asking for it."""
    allow_hosts: Sequence[str] = ()
    """Its own allow list, which narrows the worker's; empty is the worker's."""
    session_id: str = ""
    """Chosen by a coordinator; empty lets the worker choose."""
    epoch: int = 1
    """The ownership under which the worker holds it."""
