"""What an artifact may be called and labelled, and where its objects lie."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from codegen_mcp.core.errors import InvalidRequest, NotFound

PREFIX = "artifacts/"
DEFAULT_TYPE = "application/octet-stream"
MAX_NAME_BYTES = 255
MAX_LABELS = 64
MAX_LABELS_BYTES = 16 * 1024
MAX_TASK_ID_BYTES = 256

_ID = re.compile(r"art_[0-9a-f]{32}")
_KEY = re.compile(rf"{PREFIX}([A-Za-z0-9_-]{{1,64}})/(art_[0-9a-f]{{32}})\.(json|data|upload)")
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_TYPE = re.compile(
    rf'{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"(?:[ !#-\[\]-~]|\\[ -~])*"))*'
)
"""A media type with parameters: RFC 9110, section 8.3.1."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def new_artifact_id() -> str:
    """Return a fresh id with 128 random bits: who knows it may read the artifact."""
    return "art_" + secrets.token_hex(16)


def check_artifact_id(artifact_id: str) -> str:
    """Accept an id.

    Raises:
        NotFound: It cannot be the id of any artifact.
    """
    if not _ID.fullmatch(artifact_id):
        raise no_artifact(artifact_id)
    return artifact_id


def no_artifact(artifact_id: str) -> NotFound:
    """Say that there is none of this id."""
    return NotFound(
        f"there is no artifact {artifact_id[:80]!r} (any more); ListArtifacts shows those there "
        "are",
        reason="ARTIFACT_NOT_FOUND",
    )


def check_name(name: str) -> str:
    """Accept a file name: any characters but ``/``, NUL and line breaks, 1 to 255 bytes of UTF-8.

    Raises:
        InvalidRequest: It is none.
    """
    if not name or name in {".", ".."}:
        raise InvalidRequest(f"artifact name {name!r} is none; give a file name like 'plot.png'")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"artifact name {name[:80]!r} has a lone surrogate") from None
    if size > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"artifact name {name[:80]!r} has {size} bytes; use at most {MAX_NAME_BYTES}"
        )
    if "/" in name or "\0" in name or name.splitlines() != [name]:
        raise InvalidRequest(
            f"artifact name {name[:80]!r} has a '/', NUL or line break; give a plain file name"
        )
    return name


def check_content_type(content_type: str) -> str:
    """Accept a media type; empty is ``application/octet-stream``.

    Raises:
        InvalidRequest: It is none.
    """
    if not content_type:
        return DEFAULT_TYPE
    if len(content_type) > MAX_NAME_BYTES or not _TYPE.fullmatch(content_type):
        raise InvalidRequest(
            f"content_type {content_type[:80]!r} is no media type; use one like 'text/csv', or "
            f"leave it empty for {DEFAULT_TYPE!r}"
        )
    return content_type


def check_sha256(sha256: str) -> str:
    """Accept a digest; returned in lower case.

    Raises:
        InvalidRequest: It is none.
    """
    if not _SHA256.fullmatch(sha256.lower()):
        raise InvalidRequest(
            f"checksum_sha256 {sha256[:80]!r} is not 64 hexadecimal digits; send the sha256 of "
            "the artifact's bytes"
        )
    return sha256.lower()


def check_task_label(task_id: str) -> str:
    """Accept the id of a task, which is kept as it is and not looked up.

    Raises:
        InvalidRequest: It is too long.
    """
    if len(task_id.encode("utf-8", "surrogatepass")) > MAX_TASK_ID_BYTES:
        raise InvalidRequest(
            f"task_id {task_id[:80]!r} is longer than {MAX_TASK_ID_BYTES} bytes; shorten it"
        )
    return task_id


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Accept labels.

    Raises:
        InvalidRequest: There are too many, or they are too long.
    """
    size = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if len(labels) > MAX_LABELS or size > MAX_LABELS_BYTES:
        raise InvalidRequest(
            f"{len(labels)} labels with {size} bytes are too many; use at most {MAX_LABELS} with "
            f"{MAX_LABELS_BYTES} bytes, and put more into the artifact"
        )
    return dict(labels)


def data_key(session_id: str, artifact_id: str) -> str:
    """Where the bytes lie."""
    return f"{PREFIX}{session_id}/{artifact_id}.data"


def upload_key(session_id: str, artifact_id: str) -> str:
    """Where a store's own link lets a client write, again and again until it has run out."""
    return f"{PREFIX}{session_id}/{artifact_id}.upload"


def record_key(session_id: str, artifact_id: str) -> str:
    """Where the metadata lies; an artifact exists while this object does."""
    return f"{PREFIX}{session_id}/{artifact_id}.json"


def parse_key(key: str) -> tuple[str, str, str] | None:
    """(session, artifact, ``json``, ``data`` or ``upload``); None when it is no key of ours."""
    match = _KEY.fullmatch(key)
    return None if match is None else (match[1], match[2], match[3])
