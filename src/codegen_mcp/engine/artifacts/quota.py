"""How much artifacts may take, those announced included."""

from __future__ import annotations

from collections.abc import Mapping

from codegen_mcp.core.errors import Full, InvalidRequest, LimitExceeded
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.index import ArtifactIndex
from codegen_mcp.engine.artifacts.uploads import Upload

RETRY_AFTER_S = 60.0


class Quota:
    """Counts what the keeper holds."""

    def __init__(
        self, config: ArtifactConfig, index: ArtifactIndex, uploads: Mapping[str, Upload]
    ) -> None:
        """Share the keeper's parts."""
        self._config = config
        self._index = index
        self._uploads = uploads

    def check(self, session_id: str, size_bytes: int) -> None:
        """Refuse what would be too much.

        Raises:
            InvalidRequest: A negative size. LimitExceeded: Of one, or of the session's. Full: Of
            all together.
        """
        if size_bytes < 0:
            raise InvalidRequest(f"size_bytes={size_bytes!r} is negative; send the exact size")
        if size_bytes > self._config.max_bytes:
            raise LimitExceeded(
                f"an artifact may have {self._config.max_bytes} bytes, not {size_bytes}; split it, "
                "or raise MAX_ARTIFACT_BYTES"
            )
        sizes = [info.size_bytes for info in self._index.of_session(session_id)]
        sizes += [
            upload.announced.size_bytes
            for upload in self._uploads.values()
            if upload.announced.session_id == session_id
        ]
        if len(sizes) >= self._config.session_count:
            raise LimitExceeded(
                f"session {session_id!r} has {len(sizes)} artifacts, those announced included, as "
                "many as it may; delete some"
            )
        if sum(sizes) + size_bytes > self._config.session_bytes:
            raise LimitExceeded(
                f"the artifacts of session {session_id!r} have {sum(sizes)} bytes, those announced "
                f"included, and may have {self._config.session_bytes}; delete some"
            )
        announced = [upload.announced.size_bytes for upload in self._uploads.values()]
        total = self._index.total_bytes + sum(announced)
        if total + size_bytes > self._config.total_bytes:
            raise Full(
                f"the artifacts of this worker have {total} bytes, those announced included, and "
                f"may have {self._config.total_bytes}; delete some, or raise ARTIFACT_STORE_BYTES",
                reason="ARTIFACTS_FULL",
            )
        if len(self._index) + len(announced) >= self._config.total_count:
            raise Full(
                f"this worker has {self._config.total_count} artifacts, those announced included, "
                "as many as it may; delete some",
                reason="ARTIFACTS_FULL",
            )

    def check_uploads(self) -> None:
        """Refuse an upload while too many are announced and not recorded. Full."""
        if len(self._uploads) >= self._config.uploads:
            raise Full(
                f"{len(self._uploads)} uploads are announced and not recorded, as many as may be; "
                "record them, or wait until their links have run out",
                reason="UPLOADS_FULL",
                retry_after_s=RETRY_AFTER_S,
            )
