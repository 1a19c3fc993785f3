"""What is said when an upload cannot be had, sent or recorded."""

from __future__ import annotations

from codegen_mcp.core.errors import Corrupt, NotFound, WrongState


def no_links() -> WrongState:
    """Neither the worker nor its store can serve links."""
    return WrongState(
        "this worker serves no HTTP, and its store has no links of its own: set HTTP_PORT to a "
        "free port, or use an S3 store",
        reason="NO_LINKS",
        metadata={"setting": "HTTP_PORT"},
    )


def no_upload(artifact_id: str) -> NotFound:
    """Nothing of this id was announced."""
    return NotFound(
        f"there is no upload {artifact_id[:80]!r}, or its time is over; ask for a link with "
        "GetUploadURL",
        reason="ARTIFACT_NOT_FOUND",
    )


def nothing_sent(artifact_id: str) -> WrongState:
    """No bytes came yet."""
    return WrongState(
        f"nothing was uploaded for artifact {artifact_id!r} yet; PUT its bytes to its link first",
        reason="NOTHING_UPLOADED",
    )


def differs(artifact_id: str) -> Corrupt:
    """Other bytes came than are to be recorded."""
    return Corrupt(
        f"the bytes uploaded for artifact {artifact_id!r} do not have the length and sha256 that "
        "were to be recorded; nothing was recorded, upload it again",
        reason="UPLOAD_MISMATCH",
    )
