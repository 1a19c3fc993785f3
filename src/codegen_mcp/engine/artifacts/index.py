"""Every recorded artifact of this worker's store, in memory: who asks by id names no session."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from codegen_mcp.engine.artifacts.base import ArtifactInfo


class ArtifactIndex:
    """Facts by id and by session; about a kilobyte for each artifact."""

    def __init__(self) -> None:
        self._all: dict[str, ArtifactInfo] = {}
        self._of_session: dict[str, dict[str, ArtifactInfo]] = {}
        self.total_bytes = 0
        """Of all of them."""

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, artifact_id: str) -> bool:
        return artifact_id in self._all

    def find(self, artifact_id: str) -> ArtifactInfo | None:
        """Look one up."""
        return self._all.get(artifact_id)

    def add(self, info: ArtifactInfo) -> None:
        """Note one."""
        self.remove(info.artifact_id)
        self.total_bytes += info.size_bytes
        self._all[info.artifact_id] = info
        self._of_session.setdefault(info.session_id, {})[info.artifact_id] = info

    def remove(self, artifact_id: str) -> None:
        """Forget one, if it is there."""
        info = self._all.pop(artifact_id, None)
        if info is not None:
            self.total_bytes -= info.size_bytes
            mine = self._of_session[info.session_id]
            del mine[artifact_id]
            if not mine:
                del self._of_session[info.session_id]

    def of_session(self, session_id: str) -> Iterable[ArtifactInfo]:
        """All of a session, in no order."""
        return self._of_session.get(session_id, {}).values()

    def created_before(self, time_ms: int) -> list[ArtifactInfo]:
        """Those recorded before a time."""
        return [info for info in self._all.values() if info.created_at_ms < time_ms]

    def newest(
        self, session_id: str, task_id: str, before: tuple[int, str] | None, limit: int | None
    ) -> list[ArtifactInfo]:
        """As ``Artifacts.list`` says."""
        found = self.of_session(session_id) if session_id else self._all.values()
        chosen = (
            info
            for info in found
            if (not task_id or info.task_id == task_id)
            and (before is None or position(info) < before)
        )
        if limit is None:
            return sorted(chosen, key=position, reverse=True)
        return heapq.nlargest(limit, chosen, key=position)


def position(info: ArtifactInfo) -> tuple[int, str]:
    """Order of listing."""
    return info.created_at_ms, info.artifact_id
