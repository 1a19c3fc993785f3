"""Between the wire and the core: checkpoints, cut so that no message is too large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.core.checkpoint import CheckpointInfo, Restored, parse_checkpoint_id
from codegen_mcp.core.errors import InvalidRequest, NotFound
from codegen_mcp.core.limits import KIB, ResourceLimits
from codegen_mcp.engine.base import SessionView
from codegen_mcp.server.convert import MAX_PAYLOAD_BYTES, not_negative
from codegen_mcp.server.convert_sessions import (
    DURABILITIES,
    MAX_LOST_BYTES,
    STATES,
    limits_message,
    page_start,
)
from codegen_mcp.server.status import cut

MAX_MODIFIED = 1000
MAX_CHAIN = 64
"""Of the ids that are shown; chains are far shorter."""
MAX_FACT_BYTES = 1 * KIB
MAX_WHOLE = 2**63 - 1
MAX_NAMES_BYTES = 512 * KIB
"""Of installed_packages, and of modified_files: hostile code chooses both."""
MAX_VARIABLES_BYTES = 1024 * KIB
"""Of env_vars and session_metadata together, twice what sessions may be given: what is read from
a store may be anything."""


def metadata(info: CheckpointInfo) -> pb.CheckpointMetadata:
    """Return the facts of a checkpoint; at most 2.2 MiB, whatever lay in the store."""
    own = info.checkpoint_id
    env, session_metadata = bounded_maps(info.env, info.metadata)
    return pb.CheckpointMetadata(
        session_id=own.session_id,
        workspace_id=short(info.workspace_id),
        created_at_ms=whole(info.created_at_ms),
        env_vars=env,
        installed_packages=bounded(info.installed_packages),
        modified_files=bounded(info.modified_files[:MAX_MODIFIED]),
        checksum_sha256=short(info.sha256),
        checkpoint_id=str(own),
        checkpoint_name=short(info.name),
        parent_checkpoint_id=parent_id(info),
        chain_checkpoint_ids=[
            str(replace(own, number=number)) for number in info.chain[-MAX_CHAIN:]
        ],
        interpreter=short(info.interpreter),
        limits=limits(info.limits),
        size_bytes=whole(info.size_bytes),
        total_bytes=whole(info.total_bytes),
        entry_count=whole(info.entries),
        modified_count=whole(info.modified_count),
        freeze_ms=info.freeze_ms,
        consistency=short(info.consistency),
        trigger=short(info.trigger),
        storage_url=short(info.storage_url),
        session_metadata=session_metadata,
        user_id=short(info.user_id),
        durability=durability_of(info),
        auto_restore=info.auto_restore,
        allow_network=info.allow_network,
        allow_hosts=info.allow_hosts,
        idle_timeout_seconds=info.idle_timeout_s,
        last_sequence=whole(info.last_sequence),
        manifest_sha256=short(info.manifest_sha256),
        journal_sha256=short(info.journal_sha256),
        inflated_bytes=whole(info.inflated_bytes),
        checkpoint_interval_seconds=(
            info.checkpoint_interval_s if info.checkpoint_interval_s >= 0 else None
        ),
    )


def taken(info: CheckpointInfo) -> pb.CheckpointResponse:
    """Answer of CheckpointSession."""
    return pb.CheckpointResponse(
        checkpoint_id=str(info.checkpoint_id),
        size_bytes=whole(info.size_bytes),
        storage_url=short(info.storage_url),
        metadata=metadata(info),
    )


def listed(info: CheckpointInfo) -> pb.CheckpointInfo:
    """Return a checkpoint as lists have it."""
    return pb.CheckpointInfo(
        checkpoint_id=str(info.checkpoint_id),
        checkpoint_name=short(info.name),
        parent_checkpoint_id=parent_id(info),
        size_bytes=whole(info.size_bytes),
        metadata=metadata(info),
    )


def restored(value: Restored, view: SessionView, worker_id: str) -> pb.RestoreResponse:
    """Answer of RestoreSession."""
    return pb.RestoreResponse(
        session_id=value.session_id,
        worker_id=worker_id,
        state=STATES[view.state],
        checkpoint_metadata=metadata(value.info),
        lost=cut(value.lost, MAX_LOST_BYTES),
    )


def page(
    infos: Iterable[CheckpointInfo], request: pb.ListCheckpointsRequest, most: int
) -> pb.ListCheckpointsResponse:
    """Cut one page, newest first, as long as it fits a message; a token names its last one.

    Checkpoints that are made or deleted between two pages neither repeat nor hide others.

    Raises:
        InvalidRequest: A bad size or token.
    """
    size = min(not_negative("page_size", request.page_size) or most, most)
    after = position_in(request.page_token)
    rest = sorted(
        (info for info in infos if request.workspace_id in {"", info.workspace_id}),
        key=position,
        reverse=True,
    )
    if after is not None:
        rest = [info for info in rest if position(info) < after]
    answer = pb.ListCheckpointsResponse()
    room = MAX_PAYLOAD_BYTES
    for count, info in enumerate(rest):
        message = listed(info)
        room -= message.ByteSize() + 16
        if count == size or (count and room < 0):
            last = rest[count - 1]
            answer.next_page_token = f"{whole(last.created_at_ms)}.{last.checkpoint_id}"
            break
        answer.checkpoints.append(message)
    return answer


def position(info: CheckpointInfo) -> tuple[int, str, int, int]:
    """Order of listing, oldest first."""
    own = info.checkpoint_id
    return whole(info.created_at_ms), own.session_id, own.epoch, own.number


def position_in(token: str) -> tuple[int, str, int, int] | None:
    """Read a page token; the checkpoint that it names need not be there any more.

    Raises:
        InvalidRequest: It is not one of ours.
    """
    start = page_start(token)
    if start is None:
        return None
    try:
        own = parse_checkpoint_id(start[1])
    except NotFound:
        raise InvalidRequest(
            f"page_token {token[:80]!r} is not one that this worker gave"
        ) from None
    return start[0], own.session_id, own.epoch, own.number


def limits(value: ResourceLimits) -> common_pb2.ResourceLimits | None:
    """Show the limits; None where they are numbers that the wire cannot hold."""
    try:
        return limits_message(value)
    except (ValueError, OverflowError, TypeError):
        return None


def durability_of(info: CheckpointInfo) -> common_pb2.Durability.ValueType:
    """Name it; UNSPECIFIED for one of a later version."""
    known = [number for ours, number in DURABILITIES.items() if ours == info.durability]
    return known[0] if known else common_pb2.DURABILITY_UNSPECIFIED


def whole(value: int) -> int:
    """Return a number that an int64 holds."""
    return min(value, MAX_WHOLE)


def short(text: str) -> str:
    """Return a short fact as text of the wire."""
    return cut(text, MAX_FACT_BYTES)


def parent_id(info: CheckpointInfo) -> str:
    """Id of the one that it builds on; empty for a full one."""
    return str(replace(info.checkpoint_id, number=info.parent)) if info.parent else ""


def bounded(names: Sequence[str]) -> list[str]:
    """Return as many as fit into MAX_NAMES_BYTES, as text of the wire."""
    shown, room = [], MAX_NAMES_BYTES
    for name in names:
        text = plain(name)
        room -= len(text.encode()) + 4
        if room < 0:
            break
        shown.append(text)
    return shown


def bounded_maps(*maps: Mapping[str, str]) -> list[dict[str, str]]:
    """Return each as text of the wire; all together fit into MAX_VARIABLES_BYTES."""
    room = MAX_VARIABLES_BYTES
    answer = []
    for one in maps:
        shown: dict[str, str] = {}
        for key, value in one.items():
            name, text = plain(key), plain(value)
            room -= len(name.encode()) + len(text.encode()) + 16
            if room >= 0:
                shown[name] = text
        answer.append(shown)
    return answer


def plain(text: str) -> str:
    """Escape lone surrogates, which UTF-8 and so the wire lacks."""
    return text.encode("utf-8", "backslashreplace").decode()
