"""What every directory promises: the laws of ``testing/directory_laws.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen_mcp.testing.directory_laws import LAWS, Law
from codegen_mcp.testing.directory_rigs import RIGS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("directory", RIGS)
async def test_the_law_holds(directory: str, law: Law, tmp_path: Path) -> None:
    async with RIGS[directory](tmp_path) as rig:
        await law(rig)
