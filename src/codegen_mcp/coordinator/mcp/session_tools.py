"""session_*: make, look at, save, bring back, copy and end sessions."""

from __future__ import annotations

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator.mcp.answers import (
    CheckpointAnswer,
    DestroyAnswer,
    ForkAnswer,
    RestoreAnswer,
    SessionAnswer,
    SessionItem,
    SessionsAnswer,
)
from codegen_mcp.coordinator.mcp.arguments import (
    PageArguments,
    SessionArguments,
    SessionCheckpointArguments,
    SessionCreateArguments,
    SessionDestroyArguments,
    SessionForkArguments,
    SessionRestoreArguments,
)
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.words import paragraphs, shown_name, size
from codegen_mcp.coordinator.session_calls import ASLEEP, LOST
from codegen_mcp.core.limits import MIB

PAGE = 50
SHOWN_TASKS = 20
ASLEEP_STATE = "asleep"
"""Of a session that no worker has, and the next call that names it brings back. The wire has no
state for that, and its "failed" would make a model give the session up."""


async def session_create(call: Call, arguments: SessionCreateArguments) -> Reply:
    """Make one that ends only when it was idle for long, or is destroyed."""
    config = pb.SessionConfig(
        env_vars=arguments.env_vars,
        language=arguments.language,
        auto_restore=arguments.auto_restore,
        allow_network=arguments.allow_network,
        allow_hosts=arguments.allow_hosts,
        limits=common_pb2.ResourceLimits(
            max_memory_bytes=arguments.memory_mib * MIB,
            max_disk_bytes=arguments.disk_mib * MIB,
            max_cpu_millicores=round(arguments.cpus * 1000),
        ),
    )
    if arguments.idle_timeout_seconds:
        config.idle_timeout_seconds = arguments.idle_timeout_seconds
    made = await call.unary(
        "SessionManagement/CreateSession",
        pb.CreateSessionRequest(config=config),
        pb.CreateSessionResponse,
    )
    notice = f"Pass session_id={made.session_id!r} to every call that shall use it."
    answer = SessionAnswer(
        session_id=made.session_id,
        state=_state(made.state),
        language=made.language,
        created_at_ms=made.created_at_ms,
        worker_id=made.worker_id,
        memory_limit_bytes=made.limits.max_memory_bytes,
        disk_limit_bytes=made.limits.max_disk_bytes,
        cpu_limit_millicores=made.limits.max_cpu_millicores,
        notice=notice,
    )
    return Reply(
        value=answer,
        text=paragraphs(
            f"session_id={made.session_id}", f"{answer.language}, {_limits(answer)}", notice
        ),
    )


async def session_list(call: Call, arguments: PageArguments) -> Reply:
    """One page of the caller's."""
    page = await call.unary(
        "SessionManagement/ListSessions",
        pb.ListSessionsRequest(page_size=PAGE, page_token=arguments.page),
        pb.ListSessionsResponse,
    )
    items = tuple(_item(info) for info in page.sessions)
    return Reply(
        value=SessionsAnswer(sessions=items, next_page=page.next_page_token),
        text=paragraphs(
            *(
                f"{one.session_id}  {one.state}  {one.language}  {one.notice}".rstrip()
                for one in items
            ),
            "" if items else "(no sessions)",
            f"more: page={page.next_page_token!r}" if page.next_page_token else "",
        ),
    )


async def session_status(call: Call, arguments: SessionArguments) -> Reply:
    """State, usage and limits."""
    session_id = call.sessions.existing(arguments.session_id)
    found = await call.unary(
        "SessionManagement/GetSessionStatus",
        pb.SessionStatusRequest(session_id=session_id),
        pb.SessionStatusResponse,
    )
    answer = SessionAnswer(
        **{
            **_item(found.info).model_dump(),
            "session_id": session_id,
            "last_checkpoint_id": found.last_checkpoint_id,
        },
        worker_id=found.worker_id,
        memory_limit_bytes=found.info.limits.max_memory_bytes,
        disk_limit_bytes=found.info.limits.max_disk_bytes,
        cpu_limit_millicores=found.info.limits.max_cpu_millicores,
        recent_tasks=tuple(found.recent_tasks[:SHOWN_TASKS]),
        restored_from=found.restored_from,
        lost=found.lost,
    )
    return Reply(
        value=answer,
        text=paragraphs(
            f"session_id={session_id}: {answer.state}, {answer.language}, "
            f"{answer.active_tasks} tasks under way",
            f"uses memory {size(answer.memory_bytes)}, disk {size(answer.disk_bytes)}; "
            f"limits: {_limits(answer)}",
            f"last checkpoint: {answer.last_checkpoint_id}" if answer.last_checkpoint_id else "",
            f"recent tasks: {', '.join(answer.recent_tasks)}" if answer.recent_tasks else "",
            f"restored from {answer.restored_from}" if answer.restored_from else "",
            f"lost: {answer.lost}" if answer.lost else "",
            answer.notice,
        ),
    )


async def session_checkpoint(call: Call, arguments: SessionCheckpointArguments) -> Reply:
    """Save one."""
    session_id = call.sessions.existing(arguments.session_id)
    taken = await call.unary(
        "SessionManagement/CheckpointSession",
        pb.CheckpointRequest(
            session_id=session_id, checkpoint_name=arguments.name, incremental=True
        ),
        pb.CheckpointResponse,
    )
    return Reply(
        value=CheckpointAnswer(
            session_id=session_id,
            checkpoint_id=taken.checkpoint_id,
            name=arguments.name,
            size_bytes=taken.size_bytes,
            created_at_ms=taken.metadata.created_at_ms,
        ),
        text=paragraphs(
            f"checkpoint_id={taken.checkpoint_id} ({size(taken.size_bytes)} stored)",
            f"session_id={session_id}",
        ),
    )


async def session_restore(call: Call, arguments: SessionRestoreArguments) -> Reply:
    """Bring one back, in place or as another."""
    made = await call.unary(
        "SessionManagement/RestoreSession",
        pb.RestoreRequest(
            checkpoint_id=arguments.checkpoint_id, create_new_session=arguments.new_session
        ),
        pb.RestoreResponse,
    )
    answer = RestoreAnswer(
        session_id=made.session_id,
        checkpoint_id=arguments.checkpoint_id,
        state=_state(made.state),
        restored_from=arguments.checkpoint_id,
        lost=made.lost,
    )
    return Reply(
        value=answer,
        text=paragraphs(
            f"session_id={made.session_id} is as of checkpoint {arguments.checkpoint_id}",
            f"lost: {made.lost}" if made.lost else "",
        ),
    )


async def session_fork(call: Call, arguments: SessionForkArguments) -> Reply:
    """Copy one."""
    session_id = call.sessions.existing(arguments.session_id)
    made = await call.unary(
        "SessionManagement/ForkSession",
        pb.ForkRequest(session_id=session_id, count=arguments.count),
        pb.ForkResponse,
    )
    ids = tuple(made.session_ids) or (made.session_id,)
    return Reply(
        value=ForkAnswer(session_id=session_id, session_ids=ids),
        text=paragraphs("new sessions: " + ", ".join(ids), f"copied from session_id={session_id}"),
    )


async def session_destroy(call: Call, arguments: SessionDestroyArguments) -> Reply:
    """End one."""
    gone = await call.unary(
        "SessionManagement/DestroySession",
        pb.DestroySessionRequest(
            session_id=arguments.session_id,
            save_checkpoint=arguments.save_checkpoint,
            force=True,
        ),
        pb.DestroySessionResponse,
    )
    call.sessions.forget(arguments.session_id)
    saved = (
        f"saved as checkpoint {gone.checkpoint_id}; "
        f"{shown_name(call.config, 'session.restore')} brings it back"
        if gone.checkpoint_id
        else ""
    )
    return Reply(
        value=DestroyAnswer(
            session_id=arguments.session_id,
            destroyed=gone.destroyed,
            checkpoint_id=gone.checkpoint_id,
            artifacts=tuple(gone.artifacts),
        ),
        text=paragraphs(f"session {arguments.session_id} is gone with its files", saved),
    )


def _item(info: common_pb2.SessionInfo) -> SessionItem:
    return SessionItem(
        session_id=info.session_id,
        state=ASLEEP_STATE if info.note in (ASLEEP, LOST) else _state(info.state),
        language=info.language,
        created_at_ms=info.created_at_ms,
        last_activity_ms=info.last_activity_ms,
        active_tasks=info.active_tasks,
        memory_bytes=info.usage.memory_bytes,
        disk_bytes=info.usage.disk_bytes,
        last_checkpoint_id=info.last_checkpoint_id,
        notice=info.note,
    )


def _state(value: int) -> str:
    try:
        name = common_pb2.SessionState.Name(value)  # type: ignore[arg-type]  # unknown values raise
    except ValueError:
        return "unknown"
    return name.removeprefix("SESSION_STATE_").lower()


def _limits(answer: SessionAnswer) -> str:
    return (
        f"memory {size(answer.memory_limit_bytes)}, disk {size(answer.disk_limit_bytes)}, "
        f"CPU {answer.cpu_limit_millicores / 1000:g} cores"
    )
