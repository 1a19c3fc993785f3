"""Where volumes of every kind can be tried: a temporary directory, or a disk with quotas."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codegen_mcp.sandbox.project_quota import give_up_exemption
from codegen_mcp.sandbox.volumes.registry import KINDS
from codegen_mcp.sandbox.volumes.space import VolumeConfig

QUOTA_DIRECTORIES = "CODEGEN_TEST_QUOTA_DIRECTORIES"
"""Variable that names mount points with project quotas, colons between them."""


def grounds(kind: str) -> list[str]:
    """Where a kind is to be tried: empty is a temporary directory."""
    if kind in ("project", "reflink"):
        return [place for place in os.environ.get(QUOTA_DIRECTORIES, "").split(":") if place] or [
            ""
        ]
    return [""]


def cases() -> list[tuple[str, str]]:
    """Every kind with each of its grounds."""
    return [(kind, ground) for kind in KINDS for ground in grounds(kind)]


@contextmanager
def ground_directory(ground: str, otherwise: Path) -> Iterator[Path]:
    """Yield a new directory there, removed after."""
    if not ground:
        yield otherwise
        return
    give_up_exemption()
    directory = Path(tempfile.mkdtemp(prefix="codegen-test-", dir=ground))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def why_not(kind: str, config: VolumeConfig) -> str:
    """Why a kind cannot be had; empty when it can."""
    return await KINDS[kind].probe(config)
