"""The store of checkpoints without a worker: for ``codegen-mcp checkpoints``."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from codegen_mcp.engine.checkpoints.catalog import Catalog
from codegen_mcp.engine.checkpoints.library import Library
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.settings import Settings
from codegen_mcp.stores.registry import open_store


def store_address(settings: Settings) -> str:
    """Where checkpoints and artifacts are kept."""
    return settings.checkpoint_dir or str(settings.base_workspace / "store")


@asynccontextmanager
async def open_checkpoint_store(settings: Settings) -> AsyncIterator[Library]:
    """Open the store that the settings name; a worker may use it at the same time.

    Raises:
        InvalidRequest: The address names none. StoreUnavailable: It cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="codegen-import-") as name:
        spool = Spool(Path(name))
        async with open_store(store_address(settings)) as store:
            yield Library(Catalog(store), spool)
