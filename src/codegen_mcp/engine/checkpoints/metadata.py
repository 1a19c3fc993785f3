"""The metadata object of a checkpoint: CheckpointInfo as JSON. Older formats are always read.

Format 1 is a JSON object: ``format``, ``checkpoint`` (the id), the other fields of CheckpointInfo
by name; ``limits`` is an object by limit name (a limit that is missing has its default); and
``own_sha256``, of all the others as JSON with sorted keys and without spaces.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from codegen_mcp.core.checkpoint import FORMAT, CheckpointId, CheckpointInfo, parse_checkpoint_id
from codegen_mcp.core.errors import Corrupt, InvalidRequest, NotFound, WrongState
from codegen_mcp.core.limits import ResourceLimits

MAX_BYTES = 16 * 1024 * 1024
MAX_CHAIN = 64
"""Far above what any setting makes; each number is an archive to be read."""
_LIMITS = {field.name: str(field.type) for field in dataclasses.fields(ResourceLimits)}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = ("installed_packages", "modified_files", "allow_hosts")
_MAPS = ("env", "metadata")
_LAST_MS = 253_402_300_799_999
"""The end of the year 9999."""
_DAMAGED = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError),
    *(InvalidRequest, NotFound),
)


def encode_info(info: CheckpointInfo) -> bytes:
    """Return the newest format."""
    content: dict[str, Any] = {"format": FORMAT, "checkpoint": str(info.checkpoint_id)}
    for field in dataclasses.fields(CheckpointInfo):
        if field.name != "checkpoint_id":
            content[field.name] = getattr(info, field.name)
    content["limits"] = {name: getattr(info.limits, name) for name in sorted(_LIMITS)}
    for name in _MAPS:
        content[name] = dict(content[name])
    for name in (*_TEXTS, "chain"):
        content[name] = list(content[name])
    content["own_sha256"] = _own_sha256(content)
    return json.dumps(content, ensure_ascii=True, indent=1).encode() + b"\n"


def decode_info(data: bytes, expected: CheckpointId) -> CheckpointInfo:
    """Read any format up to the newest; ``expected`` is what its key says.

    Raises:
        Corrupt: It is damaged, or another checkpoint's.
        WrongState: A newer version of this program wrote it.
    """
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise TypeError("no object")
        found = content.pop("format", None)
        digest = content.pop("own_sha256", None)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise TypeError(f"format {found!r}")
        if found > FORMAT:
            raise WrongState(
                f"checkpoint {str(expected)!r} has format {found}, newer than the {FORMAT} that "
                "this version knows; use the version that wrote it, or a newer one",
                reason="FORMAT_TOO_NEW",
            )
        if digest != _own_sha256({"format": found, **content}):
            raise ValueError("it has another sha256 than it says")
        if parse_checkpoint_id(content.pop("checkpoint")) != expected:
            raise ValueError("it is another checkpoint's")
        return _info(expected, content)
    except _DAMAGED as error:
        raise Corrupt(
            f"the metadata of checkpoint {str(expected)!r} is damaged ({str(error)[:200]}); "
            "use another checkpoint of the session",
            reason="CHECKPOINT_DAMAGED",
        ) from error


def _own_sha256(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _info(checkpoint_id: CheckpointId, content: dict[str, Any]) -> CheckpointInfo:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(CheckpointInfo):
        if field.name in content:
            values[field.name] = _checked(field.name, str(field.type), content[field.name])
    info = CheckpointInfo(checkpoint_id=checkpoint_id, **values)
    if not info.chain or info.chain[-1] != checkpoint_id.number:
        raise ValueError("its chain does not end with itself")
    if any(not 0 < n <= checkpoint_id.number for n in info.chain):
        raise ValueError("its chain has numbers that cannot be")
    if len(info.chain) > MAX_CHAIN or list(info.chain) != sorted(set(info.chain)):
        raise ValueError("its chain is too long, or not in order")
    if info.created_at_ms > _LAST_MS:
        raise ValueError("its time lies beyond the year 9999")
    for name in ("sha256", "manifest_sha256"):
        if not _SHA256.fullmatch(getattr(info, name)):
            raise ValueError(f"{name} is none")
    if info.journal_sha256 and not _SHA256.fullmatch(info.journal_sha256):
        raise ValueError("journal_sha256 is none")
    return info


def _checked(name: str, kind: str, value: Any) -> Any:
    if name == "limits":
        return _limits(value)
    if name == "chain":
        return tuple(_number(name, one) for one in value)
    if name in _TEXTS:
        return tuple(_text(name, one) for one in value)
    if name in _MAPS:
        return {_text(name, key): _text(name, one) for key, one in value.items()}
    if kind == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
        return value
    if kind == "int":
        return _number(name, value)
    if kind == "float":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}")
        return _finite(name, float(value))
    return _text(name, value)


def _limits(content: Mapping[str, Any]) -> ResourceLimits:
    known = {name: value for name, value in content.items() if name in _LIMITS}
    for name, value in known.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (isinstance(value, float) and _LIMITS[name] == "float"):
            raise TypeError(f"limit {name} is {value!r}")
        _finite(name, value)
    return ResourceLimits(**known)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}")
    return value


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{name} is {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} has {value!r}")
    return value
