"""Between the wire and the core: sessions, their limits and capacity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from codegen_mcp._proto.codegen.v1 import common_pb2, session_management_pb2, worker_lifecycle_pb2
from codegen_mcp.core.errors import FieldNotSupported, InvalidRequest, LimitExceeded
from codegen_mcp.core.limits import KIB, ResourceLimits
from codegen_mcp.core.session import Durability, SessionConfig, SessionState
from codegen_mcp.engine.base import Capacity, SessionView
from codegen_mcp.server.convert import (
    label,
    not_negative,
    peak,
    refuse_if_set,
    usage,
    variables,
)
from codegen_mcp.server.status import cut

MAX_METADATA_BYTES = 256 * KIB
"""Keys and values of one session's metadata together."""
MAX_LOST_BYTES = 16 * KIB
"""Of the words on what a restore lost."""
MAX_LISTED = 1000
"""Sessions in a SessionCapacity."""

STATES: Mapping[SessionState, common_pb2.SessionState.ValueType] = {
    SessionState.INITIALIZING: common_pb2.SESSION_STATE_INITIALIZING,
    SessionState.READY: common_pb2.SESSION_STATE_READY,
    SessionState.BUSY: common_pb2.SESSION_STATE_BUSY,
    SessionState.IDLE: common_pb2.SESSION_STATE_IDLE,
    SessionState.DRAINING: common_pb2.SESSION_STATE_DRAINING,
    SessionState.CHECKPOINTING: common_pb2.SESSION_STATE_CHECKPOINTING,
    SessionState.FAILED: common_pb2.SESSION_STATE_FAILED,
}

DURABILITIES: Mapping[Durability, common_pb2.Durability.ValueType] = {
    Durability.INTERVAL: common_pb2.DURABILITY_INTERVAL,
    Durability.TURN: common_pb2.DURABILITY_TURN,
    Durability.SYNC: common_pb2.DURABILITY_SYNC,
}

LIMITS = (
    ("memory_bytes", ("max_memory_bytes", "max_memory_per_session")),
    ("cpu_millicores", ("max_cpu_millicores",)),
    ("disk_bytes", ("max_disk_bytes", "max_disk_per_session")),
    ("concurrent_tasks", ("max_concurrent_tasks",)),
    ("pids", ("max_pids",)),
    ("open_files", ("max_open_files",)),
    ("file_size_bytes", ("max_file_size_bytes",)),
    ("tmp_bytes", ("max_tmp_bytes",)),
    ("timeout_s", ("default_timeout_seconds",)),
    ("max_timeout_s", ("max_timeout_seconds",)),
    ("output_bytes", ("max_output_bytes",)),
    ("cpu_s", ("max_cpu_seconds",)),
)
"""A limit of ours, and the wire's names for it; where there are two, the tighter one holds."""


def session_config(
    request: session_management_pb2.CreateSessionRequest,
    defaults: ResourceLimits,
    tools: Collection[str],
    *,
    checkpoints: bool = True,
) -> SessionConfig:
    """Read what a caller asks for; ``checkpoints`` says whether this worker keeps any.

    Raises:
        InvalidRequest: A value is malformed, or a field is set that is not honoured.
    """
    config = request.config
    for name in config.required_tools:
        if name not in tools:
            raise FieldNotSupported(
                f"config.required_tools has {name[:80]!r}, which this worker lacks; "
                f"it has {', '.join(sorted(tools))}",
                metadata={"field": "config.required_tools", "tool": name},
            )
    idle_s: float | None = None
    if config.HasField("idle_timeout_seconds"):
        idle_s = positive_seconds("config.idle_timeout_seconds", config.idle_timeout_seconds)
    interval_s: float | None = None
    if config.HasField("checkpoint_interval_seconds"):
        interval_s = positive_seconds(
            "config.checkpoint_interval_seconds", config.checkpoint_interval_seconds
        )
    if not checkpoints:
        for name in ("auto_restore", "durability", "checkpoint_interval_seconds"):
            refuse_if_set(f"config.{name}", getattr(config, name), "it keeps no checkpoints")
    return SessionConfig(
        workspace_id=label("workspace_id", request.workspace_id),
        user_id=label("user_id", request.user_id),
        language=_language(config),
        env=variables("config.env_vars", config.env_vars),
        limits=limits(config.limits, defaults),
        metadata=metadata(request.metadata),
        idle_timeout_s=idle_s,
        auto_restore=config.auto_restore,
        durability=durability(config.durability),
        checkpoint_interval_s=interval_s,
        allow_network=config.allow_network,
        allow_hosts=tuple(config.allow_hosts),
        session_id=request.session_id,
        epoch=request.epoch or 1,
    )


def _language(config: session_management_pb2.SessionConfig) -> str:
    """What to run, with the image to run it in; whether there are images is the worker's matter."""
    language = label("config.language", config.language)
    image = label("config.base_image", config.base_image)
    if "@" in language:
        raise InvalidRequest(
            f"config.language={language[:80]!r} names an image; that is base_image's place",
            metadata={"field": "config.language"},
        )
    return f"{language}@{image}" if image else language


def durability(value: int) -> Durability:
    """Read what a caller asks for; not set is INTERVAL.

    Raises:
        InvalidRequest: A number that this version does not know.
    """
    if value == common_pb2.DURABILITY_UNSPECIFIED:
        return Durability.INTERVAL
    for ours, wire in DURABILITIES.items():
        if wire == value:
            return ours
    raise InvalidRequest(
        f"config.durability={value!r} is not known to this worker; use one of "
        f"{', '.join(common_pb2.Durability.Name(wire) for wire in DURABILITIES.values())}",
        metadata={"field": "config.durability"},
    )


def positive_seconds(name: str, value: int) -> float:
    """Return seconds as the core has them.

    Raises:
        InvalidRequest: 0 or negative.
    """
    if value <= 0:
        raise InvalidRequest(f"{name}={value!r} must be positive", metadata={"field": name})
    return float(value)


def limits(asked: common_pb2.ResourceLimits, defaults: ResourceLimits) -> ResourceLimits:
    """Fill the defaults in.

    Raises:
        InvalidRequest: One is negative.
    """
    if not asked.ListFields():
        return defaults
    changes: dict[str, float] = {}
    for ours, names in LIMITS:
        given = [not_negative(f"config.limits.{name}", getattr(asked, name)) for name in names]
        chosen = [value for value in given if value is not None]
        if chosen:
            changes[ours] = min(chosen)
    longest = changes.get("max_timeout_s")
    if longest is not None and "timeout_s" not in changes and longest < defaults.timeout_s:
        changes["timeout_s"] = longest
    if "disk_bytes" in changes and defaults.file_size_bytes == defaults.disk_bytes:
        changes.setdefault("file_size_bytes", changes["disk_bytes"])
    if not changes:
        return defaults
    return dataclasses.replace(defaults, **changes)  # type: ignore[arg-type]  # wire has integers


def limits_message(value: ResourceLimits) -> common_pb2.ResourceLimits:
    """Show the limits that hold; a field with a twin is shown once, in the first."""
    return common_pb2.ResourceLimits(
        max_memory_bytes=value.memory_bytes,
        max_cpu_millicores=value.cpu_millicores,
        max_disk_bytes=value.disk_bytes,
        max_concurrent_tasks=value.concurrent_tasks,
        max_pids=value.pids,
        max_open_files=value.open_files,
        max_file_size_bytes=value.file_size_bytes,
        max_tmp_bytes=value.tmp_bytes,
        default_timeout_seconds=math.ceil(value.timeout_s),
        max_timeout_seconds=math.ceil(value.max_timeout_s),
        max_output_bytes=value.output_bytes,
        max_cpu_seconds=math.ceil(value.cpu_s),
    )


def metadata(value: Mapping[str, str], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Check the metadata that would be kept; ``before`` is what it is merged into.

    Raises:
        LimitExceeded: It is more than a session may have.
    """
    new = dict(value)
    whole = {**before, **new} if before else new
    total = sum(len(key.encode()) + len(text.encode()) for key, text in whole.items())
    if total > MAX_METADATA_BYTES:
        raise LimitExceeded(
            f"the session's metadata would have {total} bytes; at most {MAX_METADATA_BYTES} are "
            "kept, put more into a file of the workspace"
        )
    return new


def created(view: SessionView, worker_id: str) -> session_management_pb2.CreateSessionResponse:
    """Answer of CreateSession."""
    return session_management_pb2.CreateSessionResponse(
        session_id=view.session_id,
        worker_id=worker_id,
        workspace_path=view.workspace_path,
        state=STATES[view.state],
        created_at_ms=view.created_at_ms,
        metadata=view.metadata,
        isolation=view.isolation,
        incarnation=view.incarnation,
        limits=limits_message(view.limits),
        language=view.language,
    )


Describe = Callable[[SessionView], common_pb2.SessionInfo]
"""``info``, with what others than the session know of it."""


def info(
    view: SessionView, *, last_checkpoint_id: str = "", last_sequence: int = 0
) -> common_pb2.SessionInfo:
    """A session as it is now."""
    return common_pb2.SessionInfo(
        session_id=view.session_id,
        workspace_id=view.workspace_id,
        created_at_ms=view.created_at_ms,
        last_activity_ms=view.last_activity_ms,
        state=STATES[view.state],
        usage=usage(view.usage),
        active_tasks=view.active_tasks,
        incarnation=view.incarnation,
        peak_usage=peak(view.usage),
        pids=view.usage.pids,
        limits=limits_message(view.limits),
        language=view.language,
        user_id=view.user_id,
        isolation=view.isolation,
        workspace_path=view.workspace_path,
        note=view.note,
        epoch=view.epoch,
        last_checkpoint_id=last_checkpoint_id,
        last_sequence=last_sequence,
    )


def status(
    view: SessionView, worker_id: str, describe: Describe
) -> session_management_pb2.SessionStatusResponse:
    """Answer of GetSessionStatus."""
    shown = describe(view)
    return session_management_pb2.SessionStatusResponse(
        session_id=view.session_id,
        worker_id=worker_id,
        state=STATES[view.state],
        info=shown,
        recent_tasks=view.recent_tasks,
        last_checkpoint_id=shown.last_checkpoint_id,
        restored_from=view.restored_from,
        lost=cut(view.lost, MAX_LOST_BYTES),
        auto_restore=view.auto_restore,
        durability=DURABILITIES[view.durability],
        checkpoint_interval_seconds=view.checkpoint_interval_s,
    )


def capacity(
    value: Capacity, describe: Describe, *, worker_id: str, version: str, facts: Mapping[str, str]
) -> worker_lifecycle_pb2.SessionCapacity:
    """Room on this worker."""
    return worker_lifecycle_pb2.SessionCapacity(
        total_sessions=value.total,
        active_sessions=value.active,
        available_sessions=max(0, value.total - value.active),
        sessions=map(describe, value.sessions[:MAX_LISTED]),
        metadata=facts,
        worker_id=worker_id,
        version=version,
    )


def page(
    views: Sequence[SessionView],
    request: session_management_pb2.ListSessionsRequest,
    most: int,
    describe: Describe,
) -> session_management_pb2.ListSessionsResponse:
    """Cut one page; a token is the id of the last session before it, with its time of creation.

    Sessions that end or begin between two pages neither repeat nor hide others.

    Raises:
        InvalidRequest: A bad size or token.
    """
    size = min(not_negative("page_size", request.page_size) or most, most)
    after = page_start(request.page_token)
    rest = sorted(views, key=position)
    if after is not None:
        rest = [view for view in rest if position(view) > after]
    shown = rest[:size]
    token = f"{shown[-1].created_at_ms}.{shown[-1].session_id}" if len(rest) > size else ""
    return session_management_pb2.ListSessionsResponse(
        sessions=map(describe, shown), next_page_token=token
    )


def position(view: SessionView) -> tuple[int, str]:
    """Order of listing."""
    return view.created_at_ms, view.session_id


def page_start(token: str) -> tuple[int, str] | None:
    """Read a page token.

    Raises:
        InvalidRequest: It is not one of ours.
    """
    if not token:
        return None
    created_at, dot, session_id = token.partition(".")
    if not dot or not created_at.isdecimal() or len(created_at) > 20:
        raise InvalidRequest(f"page_token {token[:80]!r} is not one that this worker gave")
    return int(created_at), session_id
