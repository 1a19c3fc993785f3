"""codegen-mcp run: a local file in a throw-away session."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from codegen_mcp.cli.options import make_settings, sandbox_options
from codegen_mcp.cli.scratch import scratch_settings
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.limits import MIB
from codegen_mcp.settings import Settings

STDIN_BYTES = 64 * MIB
STDIN_NOTICE_S = 2.0


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--with", "packages", multiple=True, metavar="PKG", help="Install a package first.")
@click.option(
    "--upload",
    "uploads",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Copy a file or directory into the workspace first.",
)
@click.option(
    "--download",
    "downloads",
    multiple=True,
    metavar="PATH",
    help="Copy a file of the workspace to the current directory afterwards.",
)
@click.option("--timeout", type=float, help="Seconds (TASK_TIMEOUT_S; default 60).")
@click.option("--memory-mib", type=int, help="Memory limit (MEMORY_BYTES; default 512 MiB).")
@sandbox_options
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    packages: tuple[str, ...],
    uploads: tuple[Path, ...],
    downloads: tuple[str, ...],
    timeout: float | None,
    memory_mib: int | None,
    sandbox: str | None,
    require_isolation: str | None,
    script: Path,
    args: tuple[str, ...],
) -> int:
    """Run SCRIPT with ARGS in a session of its own; output is live, the exit code is its own."""
    from codegen_mcp.telemetry.logs import configure_logging

    settings = make_settings(
        task_timeout_s=timeout,
        memory_bytes=memory_mib * MIB if memory_mib else None,
        sandbox=sandbox,
        require_isolation=require_isolation,
    )
    configure_logging("error")
    with scratch_settings(settings) as scratch:
        return asyncio.run(_run(scratch, script, args, packages, uploads, downloads))


async def _run(
    settings: Settings,
    script: Path,
    args: tuple[str, ...],
    packages: tuple[str, ...],
    uploads: tuple[Path, ...],
    downloads: tuple[str, ...],
) -> int:
    from codegen_mcp.bootstrap import open_engine
    from codegen_mcp.core.session import SessionConfig

    async with open_engine(settings, keep_sessions=False) as engine:
        session = await engine.sessions.create(SessionConfig())
        workspace = engine.sessions.workspace(session.session_id)
        for upload in (*uploads, script):
            for path in sorted(upload.rglob("*")) if upload.is_dir() else [upload]:
                if path.is_file():
                    name = path.relative_to(upload.parent).as_posix()
                    await workspace.write(name, path.read_bytes(), create_dirs=True, mode=None)
        if packages:
            code = await _task(engine, session.session_id, "pkg.install", {"packages": packages})
            if code:
                return code
        stdin = b"" if sys.stdin.isatty() else await _read_stdin()
        arguments = {"file": script.name, "args": list(args), "stdin": stdin}
        code = await _task(engine, session.session_id, "run.python", arguments)
        for name in downloads:
            chunks = [chunk async for chunk in workspace.read_chunks(name, MIB)]
            await asyncio.to_thread(Path(Path(name).name).write_bytes, b"".join(chunks))
        return code


async def _read_stdin() -> bytes:
    """Read standard input to its end; says so when that takes long."""
    reading: asyncio.Task[bytes] = asyncio.create_task(
        asyncio.to_thread(sys.stdin.buffer.read, STDIN_BYTES + 1)
    )
    done, _ = await asyncio.wait([reading], timeout=STDIN_NOTICE_S)
    if not done:
        print(
            "codegen-mcp: waiting for the end of standard input (< /dev/null for none)",
            file=sys.stderr,
        )
    data = await reading
    if len(data) > STDIN_BYTES:
        raise click.ClickException(
            f"standard input is longer than {STDIN_BYTES} bytes; use --upload for a file"
        )
    return data


async def _task(engine: Any, session_id: str, tool: str, arguments: dict[str, Any]) -> int:
    """Run one tool with live output; returns its exit code."""
    from codegen_mcp.core.task import EndedBy
    from codegen_mcp.engine.base import (
        ErrorEvent,
        OutputEvent,
        ProgressEvent,
        ResultEvent,
        TaskSubmission,
    )

    submission = TaskSubmission(task_id="", session_id=session_id, tool=tool, arguments=arguments)
    task_id = await engine.tasks.submit(submission)
    async for event in engine.tasks.events(task_id, session_id):
        match event:
            case OutputEvent() if tool == "run.python":
                stream = sys.stderr if event.stream == "stderr" else sys.stdout
                stream.buffer.write(event.data)
                stream.buffer.flush()
            case ProgressEvent() if sys.stderr.isatty():
                print(f"{event.stage}: {event.message}", file=sys.stderr)
            case ErrorEvent():
                if isinstance(event.error, WorkerError):
                    raise event.error
                raise click.ClickException(f"the worker failed: {event.error!r}")
            case ResultEvent():
                if tool != "run.python":
                    code = int(getattr(event.value, "exit_code", 0))
                    if code:
                        print(getattr(event.value, "output", ""), file=sys.stderr)
                    return code
                if event.metadata.ended_by is not EndedBy.EXIT:
                    print(f"codegen-mcp: {event.metadata.remedy}", file=sys.stderr)
                return event.metadata.exit_code
    raise click.ClickException("the task ended without a result")
