"""A state directory for one command: made, used, and gone at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codegen_mcp.sandbox import mounts
from codegen_mcp.settings import Settings


@contextmanager
def scratch_settings(settings: Settings, **changes: object) -> Iterator[Settings]:
    """Yield settings with a state directory of their own, beside the configured one if possible.

    A root process gets its own mount namespace first, so that nothing stays mounted whatever
    happens.
    """
    parent = settings.base_workspace.parent
    usable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    if settings.private_mounts and os.geteuid() == 0:
        mounts.enter_private_namespace()
    directory = Path(tempfile.mkdtemp(prefix="codegen-mcp-", dir=parent if usable else None))
    try:
        os.chmod(directory, 0o711)
        values = {"base_workspace": directory / "state", "pool_size": 0, **changes}
        yield settings.model_copy(update=values)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
