"""Metadata of artifacts and of announced uploads as JSON objects: strict, with a format number."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codegen_mcp.core.errors import Corrupt, InvalidRequest, WrongState
from codegen_mcp.engine.artifacts import facts
from codegen_mcp.engine.artifacts.base import ArtifactInfo

FORMAT = 1
"""Newer ones are refused by name, older ones are always read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """An upload that may be sent and recorded until its time is over."""

    artifact_id: str
    session_id: str
    task_id: str
    name: str
    content_type: str
    size_bytes: int
    expires_at_ms: int
    direct: bool
    """The bytes go to the store itself, and come through this worker when they are recorded."""


def write_info(info: ArtifactInfo) -> bytes:
    """Metadata object of an artifact; its URL follows from where it lies."""
    fields = dataclasses.asdict(info)
    del fields["storage_url"]
    return _dump(fields)


def read_info(data: bytes, *, session_id: str, artifact_id: str, storage_url: str) -> ArtifactInfo:
    """Read it back.

    Raises:
        Corrupt: It is not the metadata of this artifact. WrongState: A newer format.
    """
    what = f"the metadata of artifact {artifact_id!r}"
    fields = _load(data, what)
    labels = fields.get("labels")
    try:
        info = ArtifactInfo(**fields, storage_url=storage_url)
    except TypeError as error:
        raise Corrupt(f"{what} is damaged ({error}); delete the artifact") from None
    numbers = (info.size_bytes, info.created_at_ms)
    texts = (info.task_id, info.name, info.content_type, info.sha256)
    if (
        (info.artifact_id, info.session_id) != (artifact_id, session_id)
        or not all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(labels, dict)
        or not all(isinstance(value, str) for value in labels.values())
    ):
        raise Corrupt(f"{what} is damaged; delete the artifact")
    try:
        # Whoever wrote it: all of this goes into headers and messages.
        facts.check_name(info.name)
        facts.check_content_type(info.content_type or "none")
        facts.check_sha256(info.sha256)
        facts.check_task_label(info.task_id)
        facts.check_labels(labels)
    except (InvalidRequest, UnicodeEncodeError) as error:
        raise Corrupt(f"{what} is damaged ({str(error)[:200]}); delete the artifact") from None
    return info


def write_announced(announced: Announced) -> bytes:
    """Write a file of this worker's own."""
    return _dump(dataclasses.asdict(announced))


def read_announced(data: bytes) -> Announced:
    """Read it back. Corrupt, WrongState: as ``read_info``."""
    try:
        return Announced(**_load(data, "an announced upload"))
    except TypeError as error:
        raise Corrupt(f"an announced upload is damaged ({error})") from None


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, **fields}, separators=(",", ":")).encode()


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{what} is damaged ({error})") from None
    version = fields.pop("format", None) if isinstance(fields, dict) else None
    if type(version) is not int or version < 1:
        raise Corrupt(f"{what} is damaged: it names no format")
    if version > FORMAT:
        raise WrongState(
            f"{what} has format {version}, which is newer than the {FORMAT} that this version "
            "knows; start the version that wrote it, or a newer one",
            reason="FORMAT_TOO_NEW",
        )
    assert isinstance(fields, dict)
    return fields
