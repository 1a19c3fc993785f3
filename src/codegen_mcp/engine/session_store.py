"""session.json: a session's record beside its files. Older formats are always read.

Format 1 is a JSON object: ``format``, and the fields of SessionRecord by name; ``limits`` is an
object by limit name (a limit that is missing has its default), ``identity`` is null or
``{uid, gid}``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegen_mcp.core.errors import Corrupt, InvalidRequest
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.engine.durable import write_file, write_new_file
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.state_directory import check_format
from codegen_mcp.sandbox.base import HostIdentity

FORMAT = 1
FILE = "session.json"
MAX_BYTES = 4 * 1024 * 1024

_LATER = frozenset(
    {
        *("durability", "auto_restore", "checkpoint_interval_s", "restored_from", "lost", "epoch"),
        *("allow_network", "allow_hosts"),
    }
)
"""Came later, and are written only where they are not the default: older versions pass them by."""
_FIELDS = tuple((field.name, field.default) for field in dataclasses.fields(SessionRecord))
_LIMITS = {field.name: field.type for field in dataclasses.fields(ResourceLimits)}


def save(directory: Path, record: SessionRecord, *, durable: bool) -> None:
    """Write the record; one writer at a time for each session.

    Raises:
        OSError: It cannot be written.
    """
    write_file(directory / FILE, encode(record), durable=durable)


def prepare(directory: Path) -> None:
    """Make the file of a record to come: to make one takes several times as long as to fill it.

    Raises:
        OSError: It cannot be made.
    """
    write_new_file(directory / FILE, b"")


def save_new(directory: Path, record: SessionRecord) -> None:
    """Write the first record of a directory that is not in its place yet; not durable.

    Straight to its name: what is half written when the worker ends is nobody's session.

    Raises:
        OSError: It cannot be written.
    """
    write_new_file(directory / FILE, encode(record))


def load(directory: Path) -> SessionRecord:
    """Read the record.

    Raises:
        Corrupt: It is missing or damaged.
        WrongState: A newer version of this program wrote it.
    """
    path = directory / FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise Corrupt(f"{str(path)!r} cannot be read ({error.strerror})") from error
    return decode(path, data)


def encode(record: SessionRecord) -> bytes:
    """Return the newest format."""
    content: dict[str, Any] = {"format": FORMAT}
    for name, default in _FIELDS:
        value = getattr(record, name)
        if name not in _LATER or value != default:
            content[name] = value
    content["limits"] = {name: getattr(record.limits, name) for name in _LIMITS}
    content["env"] = dict(record.env)
    content["metadata"] = dict(record.metadata)
    identity = record.identity
    content["identity"] = None if identity is None else {"uid": identity.uid, "gid": identity.gid}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def decode(path: Path, data: bytes) -> SessionRecord:
    """Read any format up to the newest; ``path`` is for messages.

    Raises:
        Corrupt: It is damaged.
        WrongState: It is newer.
    """
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise TypeError("no object")
        check_format(path, content.pop("format", None), FORMAT)
        identity = content["identity"]
        return SessionRecord(
            session_id=_text(content["session_id"]),
            workspace_id=_text(content["workspace_id"]),
            user_id=_text(content["user_id"]),
            interpreter=_text(content["interpreter"]),
            limits=_limits(content["limits"]),
            env=_texts(content["env"]),
            metadata=_texts(content["metadata"]),
            idle_timeout_s=float(content["idle_timeout_s"]),
            created_at_ms=int(content["created_at_ms"]),
            last_activity_ms=int(content["last_activity_ms"]),
            incarnation=int(content["incarnation"]),
            identity=None
            if identity is None
            else HostIdentity(uid=int(identity["uid"]), gid=int(identity["gid"])),
            recent_tasks=tuple(_text(one) for one in content["recent_tasks"]),
            durability=_text(content.get("durability", "interval")),
            auto_restore=content.get("auto_restore", False) is True,
            checkpoint_interval_s=float(content.get("checkpoint_interval_s", 0)),
            allow_network=content.get("allow_network", False) is True,
            allow_hosts=tuple(_text(one) for one in content.get("allow_hosts", ())),
            restored_from=_text(content.get("restored_from", "")),
            lost=_text(content.get("lost", "")),
            epoch=int(content.get("epoch", 1)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise Corrupt(f"{str(path)!r} is damaged ({type(error).__name__}: {error})") from error


def _limits(content: Mapping[str, Any]) -> ResourceLimits:
    known = {name: value for name, value in content.items() if name in _LIMITS}
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"limit {name} is {value!r}")
    return ResourceLimits(**known)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(content: Mapping[str, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in content.items()}
