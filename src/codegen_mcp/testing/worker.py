"""A real worker for tests: in this process, or as a process of its own that may be killed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegen_mcp.bootstrap import Worker, open_worker
from codegen_mcp.settings import Settings

TEST_SETTINGS: Mapping[str, Any] = {
    "grpc_port": 0,
    "max_sessions": 8,
    "pool_size": 1,
    "private_mounts": False,
    "disk_reserve_bytes": 0,
    "disk_bytes": 64 * 1024 * 1024,
    "drain_grace_s": 2.0,
}
"""Small volumes and a short grace, so that a test needs little of the machine."""


@asynccontextmanager
async def state_directory() -> AsyncIterator[Path]:
    """Yield a path for a state directory that sessions' users can pass through; gone at the end."""
    base = Path(tempfile.mkdtemp(prefix="codegen-test-", dir="/var/tmp"))
    os.chmod(base, 0o711)
    try:
        yield base / "state"
    finally:
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


@asynccontextmanager
async def in_process_worker(**changes: Any) -> AsyncIterator[Worker]:
    """Open a serving worker in this process, with its own state directory unless one is given."""
    async with state_directory() as state:
        settings = Settings(**{**TEST_SETTINGS, "base_workspace": state, **changes})
        async with open_worker(settings) as worker:
            yield worker


@dataclass(slots=True)
class WorkerProcess:
    """A worker in a process of its own."""

    state: Path
    process: asyncio.subprocess.Process
    address: str
    output: list[str] = field(default_factory=list)
    """Lines that it printed up to the one that says where it listens."""

    @property
    def log(self) -> str:
        """What all workers of this state directory have logged."""
        return log_of(self.state).read_text()

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self.process.pid

    async def kill(self) -> None:
        """SIGKILL it and wait for its end; what it leaves is the next one's to clear."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM it; returns its exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.process.wait()


def log_of(state: Path) -> Path:
    """Where worker processes log: a file, for nobody would empty a pipe."""
    return state.with_name(f"{state.name}.log")


async def start_worker_process(state: Path, **changes: Any) -> WorkerProcess:
    """Start ``codegen-mcp worker`` on a state directory and wait until it serves.

    Raises:
        RuntimeError: It ended or did not serve within 60 s; has what it said.
    """
    values = {**TEST_SETTINGS, "private_mounts": True, "base_workspace": state, **changes}
    env = {**os.environ, "LOG_LEVEL": "warn"}
    for name, value in values.items():
        field_info = Settings.model_fields[name]
        env[str(field_info.validation_alias or name).upper()] = str(value)
    with log_of(state).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from codegen_mcp.cli.main import main; sys.exit(main(['worker']))",
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=env,
        )
    assert process.stdout is not None
    output: list[str] = []
    try:
        async with asyncio.timeout(60):
            while line := (await process.stdout.readline()).decode():
                output.append(line.rstrip())
                if match := re.search(r"listening on \S+:(\d+)", line):
                    return WorkerProcess(state, process, f"127.0.0.1:{match[1]}", output)
    except TimeoutError:
        process.kill()
    await process.wait()
    output.append(log_of(state).read_text()[-4000:])
    raise RuntimeError("the worker did not start:\n" + "\n".join(output))


@asynccontextmanager
async def worker_process(**changes: Any) -> AsyncIterator[WorkerProcess]:
    """Run a worker process for as long as the block lasts."""
    async with state_directory() as state:
        worker = await start_worker_process(state, **changes)
        try:
            yield worker
        finally:
            await worker.stop()
