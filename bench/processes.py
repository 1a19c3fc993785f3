"""The worker under test and the bare reference server, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


async def _start(
    argv: list[str], pattern: str, env: dict[str, str]
) -> tuple[asyncio.subprocess.Process, re.Match[str], list[str]]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=env
    )
    assert process.stdout is not None
    seen: list[str] = []
    async with asyncio.timeout(60):
        while line := (await process.stdout.readline()).decode():
            seen.append(line)
            if match := re.search(pattern, "".join(seen)):
                return process, match, seen
    raise RuntimeError("did not start:\n" + "".join(seen))


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(65536):
        pass


@contextlib.asynccontextmanager
async def _running(argv: list[str], pattern: str, **env: str) -> AsyncIterator[re.Match[str]]:
    full = {**os.environ, **env}
    full.pop("PYTHONDONTWRITEBYTECODE", None)
    process, match, _ = await _start(argv, pattern, full)
    drain = asyncio.create_task(_drain(process))
    try:
        yield match
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()
        await drain


@contextlib.asynccontextmanager
async def worker(**settings: str) -> AsyncIterator[tuple[str, Path]]:
    """Start a worker; yields its address and state directory."""
    base = tempfile.mkdtemp(prefix="codegen-bench-")
    os.chmod(base, 0o711)
    state = Path(base) / "state"
    script = str(Path(sys.executable).parent / "codegen-mcp")
    argv = [script, "worker", "--port", "0", "--workspace", str(state), "--log-level", "warn"]
    defaults = {"MAX_SESSIONS": "64", "POOL_SIZE": "4", "MAX_CONCURRENT_RUNS": "64"}
    try:
        async with _running(
            argv, r"listening on (127\.0\.0\.1:\d+)", **{**defaults, **settings}
        ) as match:
            yield match[1], state
    finally:
        await (await asyncio.create_subprocess_exec("rm", "-rf", base)).wait()


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """Yield a path for a state directory that sessions' users can pass through; gone at the end."""
    base = tempfile.mkdtemp(prefix="codegen-bench-")
    os.chmod(base, 0o711)
    try:
        yield Path(base) / "state"
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextlib.asynccontextmanager
async def served(**settings: str) -> AsyncIterator[tuple[str, str]]:
    """Start ``codegen-mcp serve``; yields its gRPC address and the URL of MCP."""
    script = str(Path(sys.executable).parent / "codegen-mcp")
    argv = [script, "serve", "--port", "0", "--http-port", "0", "--log-level", "warn"]
    defaults = {"MAX_SESSIONS": "64", "POOL_SIZE": "4", "MAX_CONCURRENT_RUNS": "64"}
    with place() as state:
        argv += ["--workspace", str(state)]
        pattern = r"gRPC listening on (\S+)\nMCP at (\S+),"
        async with _running(argv, pattern, **{**defaults, **settings}) as match:
            yield match[1], match[2]


@contextlib.asynccontextmanager
async def coordinator(**settings: str) -> AsyncIterator[str]:
    """Start a coordinator; yields its address."""
    script = str(Path(sys.executable).parent / "codegen-mcp")
    with place() as state:
        argv = [script, "coordinator", "--port", "0", "--workspace", str(state)]
        pattern = r"listening on (127\.0\.0\.1:\d+)"
        async with _running([*argv, "--log-level", "warn"], pattern, **settings) as match:
            yield match[1]


@contextlib.asynccontextmanager
async def bare_server() -> AsyncIterator[str]:
    """Start the reference: the same messages on grpc.aio and nothing behind them."""
    argv = [sys.executable, str(Path(__file__).parent / "bare_server.py")]
    async with _running(argv, r"port (\d+)") as match:
        yield f"127.0.0.1:{match[1]}"
