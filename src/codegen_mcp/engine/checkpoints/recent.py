"""Manifests that were written last: the next checkpoint of the same session builds on one."""

from __future__ import annotations

from codegen_mcp.engine.checkpoints.manifest import Manifest

MOST_ENTRIES = 40_000
"""Of all manifests together: some 400 bytes each; a KiB of paths counts as one more."""


class RecentManifests:
    """Keeps few, the oldest go first."""

    def __init__(self) -> None:
        self._kept: dict[str, Manifest] = {}

    def put(self, manifest: Manifest) -> None:
        """Keep one, unless it alone is too large; that of its parent goes."""
        session = manifest.checkpoint.partition(".")[0]
        for older in [one for one in self._kept if one.partition(".")[0] == session]:
            del self._kept[older]
        self._kept[manifest.checkpoint] = manifest
        while sum(map(_weight, self._kept.values())) > MOST_ENTRIES:
            del self._kept[next(iter(self._kept))]

    def get(self, checkpoint: str) -> Manifest | None:
        """Return the manifest of a checkpoint, if it is here."""
        return self._kept.get(checkpoint)


def _weight(manifest: Manifest) -> int:
    entries = manifest.entries
    return len(entries) + sum(len(one.path) + len(one.target) for one in entries) // 1024
