"""What uv would ask an interpreter at every install, asked once.

uv starts the interpreter to learn its paths and tags (45 ms, more than half of a small install)
and keeps the answer in its cache. A session has no cache that it could trust to another, so the
answer is made in the fetcher's sandbox, with the read-only template in the place of ``/venv``, and
handed to each install. uv compares it with the interpreter's time stamp and asks anew when it
differs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import Mapping

import structlog

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.fetcher_sandbox import FetchSandbox, open_directory
from codegen_mcp.languages.python.packages import PackageConfig

_log = structlog.get_logger()

_NAME = re.compile(r"interpreter-v[0-9]+/[0-9a-f]{1,64}/[0-9a-f]{1,64}\.msgpack")
_MAX_FILES = 4
_MAX_BYTES = 64 * 1024
_TIMEOUT_S = 20.0

Seed = Mapping[str, bytes]
"""Path in uv's cache to content."""


class InterpreterSeeds:
    """Makes and keeps one seed for each interpreter; none where there is no sandbox for it."""

    def __init__(self, config: PackageConfig) -> None:
        self._config = config
        self._seeds: dict[tuple[str, str], Seed] = {}
        self._lock = asyncio.Lock()

    async def get(self, interpreter: Interpreter) -> Seed:
        """Return the interpreter's seed, made at the first call; empty when that failed."""
        if self._config.bubblewrap is None:
            return {}
        key = (str(interpreter.executable), interpreter.version)
        async with self._lock:
            if key not in self._seeds:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        self._seeds[key] = await self._make(interpreter)
                except (WorkerError, OSError, TimeoutError) as error:
                    _log.warning("packages.no_seed", python=interpreter.name, reason=str(error))
                    self._seeds[key] = {}
            return self._seeds[key]

    async def _make(self, interpreter: Interpreter) -> Seed:
        async with open_directory(self._config) as directory:
            sandbox = FetchSandbox(
                self._config, interpreter, directory, None, template=interpreter.template
            )
            async with sandbox as guest:
                answer = await guest.ask({"do": "interpreter"})
        files = answer.get("files")
        return _checked(files) if isinstance(files, dict) else {}


def _checked(files: Mapping[object, object]) -> Seed:
    seed: dict[str, bytes] = {}
    for name, content in list(files.items())[:_MAX_FILES]:
        if not isinstance(content, str) or len(content) > _MAX_BYTES:
            continue
        if not _NAME.fullmatch(str(name)):
            continue
        with contextlib.suppress(binascii.Error):
            seed[str(name)] = base64.b64decode(content, validate=True)
    return seed
