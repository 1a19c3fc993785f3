"""What callers of a fleet may be told, and what drills wait for."""

from __future__ import annotations

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.testing.fleet import STATED_S, Answer, Fleet
from codegen_mcp.testing.fleet_witness import Witness

TYPED = frozenset({"UNAVAILABLE", "NOT_FOUND", "ABORTED", "RESOURCE_EXHAUSTED"})


def in_time(answer: Answer, *, stated_s: float = STATED_S) -> Answer:
    """Return an answer that is right or a typed error, and within the stated time."""
    assert answer.seconds < stated_s, answer
    if not answer.ok:
        assert answer.code in TYPED, answer
        assert answer.message
    return answer


def unknown(answer: Answer, *, stated_s: float = STATED_S) -> bool:
    """Whether the caller was told that a task was cut off, or that nobody knows its outcome."""
    in_time(answer, stated_s=stated_s)
    if answer.ok:
        return answer.ended_by == common_pb2.ENDED_BY_WORKER_LOST
    return (answer.code, answer.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")


async def begun(witness: Witness, fleet: Fleet, name: str) -> None:
    """Wait until a task runs."""

    async def runs() -> bool:
        return witness.runs().get(name, 0) > 0

    await fleet.until(runs, f"task {name} running")


async def end(fleet: Fleet, *sessions: str) -> None:
    """End what a drill has made."""
    for session_id in sessions:
        request = pb.DestroySessionRequest(session_id=session_id, force=True)
        await fleet.wire.sessions.DestroySession(request, timeout=30)
