"""What the SDK answers of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from codegen_mcp._proto.codegen.v1 import common_pb2, session_management_pb2

Durability = Literal["interval", "turn", "sync"]
"""When a session is saved without being asked: at times while it is changed; also each time it has
become idle; or before each task's result is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One durable, verified checkpoint."""

    checkpoint_id: str
    """For ``Sandbox.restore``; it outlives its session."""
    sandbox_id: str
    """The session that it is of."""
    name: str = ""
    parent_id: str = ""
    """The one that it builds on; empty for a full one."""
    chain: tuple[str, ...] = ()
    """Ids of those whose archives a restore reads, oldest first, itself last."""
    workspace_id: str = ""
    user_id: str = ""
    created_at_ms: int = 0
    language: str = ""
    """The interpreter, for example ``python3.11``."""
    envs: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The session's then."""
    installed_packages: tuple[str, ...] = ()
    """``name==version``, sorted."""
    modified_files: tuple[str, ...] = ()
    """Changed or removed since its parent, or since the session began; at most 1,000."""
    modified_count: int = 0
    """All of them."""
    entries: int = 0
    """Files, directories and links of the session then."""
    total_bytes: int = 0
    """Of all its files then."""
    size_bytes: int = 0
    """Of this checkpoint's archive."""
    sha256: str = ""
    """Of the archive, hexadecimal."""
    storage_url: str = ""
    """Where the archive lies, a tar.gz that tar reads."""
    freeze_ms: float = 0.0
    """How long the session's processes stood still."""
    consistency: str = ""
    """``frozen`` (all at once), ``stopped`` (one after the other) or ``idle`` (nothing ran)."""
    trigger: str = ""
    """``request``, ``destroy``, ``idle``, ``drain``, ``interval``, ``turn`` or ``sync``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreInfo:
    """What a restore gave."""

    sandbox_id: str
    checkpoint: CheckpointInfo
    lost: str = ""
    """What the session had done since, in words; empty when nothing was lost."""


def checkpoint_info(message: session_management_pb2.CheckpointMetadata) -> CheckpointInfo:
    """Read a checkpoint's facts."""
    return CheckpointInfo(
        checkpoint_id=message.checkpoint_id,
        sandbox_id=message.session_id,
        name=message.checkpoint_name,
        parent_id=message.parent_checkpoint_id,
        chain=tuple(message.chain_checkpoint_ids),
        workspace_id=message.workspace_id,
        user_id=message.user_id,
        created_at_ms=message.created_at_ms,
        language=message.interpreter,
        envs=dict(message.env_vars),
        metadata=dict(message.session_metadata),
        installed_packages=tuple(message.installed_packages),
        modified_files=tuple(message.modified_files),
        modified_count=message.modified_count,
        entries=message.entry_count,
        total_bytes=message.total_bytes,
        size_bytes=message.size_bytes,
        sha256=message.checksum_sha256,
        storage_url=message.storage_url,
        freeze_ms=message.freeze_ms,
        consistency=message.consistency,
        trigger=message.trigger,
    )


def restore_info(message: session_management_pb2.RestoreResponse) -> RestoreInfo:
    """Read the answer of RestoreSession."""
    return RestoreInfo(
        sandbox_id=message.session_id,
        checkpoint=checkpoint_info(message.checkpoint_metadata),
        lost=message.lost,
    )


DURABILITIES: Mapping[str, common_pb2.Durability.ValueType] = {
    "": common_pb2.DURABILITY_UNSPECIFIED,
    "interval": common_pb2.DURABILITY_INTERVAL,
    "turn": common_pb2.DURABILITY_TURN,
    "sync": common_pb2.DURABILITY_SYNC,
}


def durability_name(value: int) -> str:
    """Name a durability of the wire; one that this SDK does not know is the empty string."""
    names: dict[int, str] = {number: name for name, number in DURABILITIES.items()}
    return names.get(value, "")
