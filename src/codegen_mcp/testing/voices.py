"""Asks a worker in all the ways in which it speaks of its isolation; prints JSON, for tests.

``python -m codegen_mcp.testing.voices STATE LEVEL``: a worker and then ``doctor`` with a state
directory below STATE, both with ``--require-isolation LEVEL``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2_grpc as rpc
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.limits import MIB
from codegen_mcp.settings import Settings

DEADLINE_S = 30.0


async def speak(settings: Settings) -> dict[str, Any]:
    """Start a worker: what its start, capacity, ``/readyz`` and a session say, or its refusal."""
    from codegen_mcp.bootstrap import open_worker
    from codegen_mcp.bootstrap.serve import start_up_lines

    try:
        async with open_worker(settings) as worker:
            http = worker.http.artifacts
            assert http is not None
            url = f"http://127.0.0.1:{http.port}/readyz"
            async with grpc.aio.insecure_channel(worker.address) as channel:
                sessions = rpc.SessionManagementStub(channel)
                made = await sessions.CreateSession(pb.CreateSessionRequest(), timeout=DEADLINE_S)
                asked = pb.SessionStatusRequest(session_id=made.session_id)
                status = await sessions.GetSessionStatus(asked, timeout=DEADLINE_S)
                room = await sessions.GetCapacity(pb.CapacityRequest(), timeout=DEADLINE_S)
            return {
                "lines": start_up_lines(settings, worker.engine),
                "capacity": dict(room.metadata),
                "session": dict(status.info.isolation),
                "readyz": (await asyncio.to_thread(_get, url)).splitlines(),
            }
    except WorkerError as error:
        return {"refusal": error.message}


async def voices(state: Path, level: str) -> dict[str, Any]:
    """The worker's words, and then the doctor's, who is a process of its own."""
    limits = {"memory_bytes": 128 * MIB, "disk_bytes": 32 * MIB, "require_isolation": level}
    settings = Settings.model_validate(
        {
            "base_workspace": state / "worker",
            "grpc_port": 0,
            "pool_size": 0,
            "disk_reserve_bytes": 0,
            **limits,
        }
    )
    worker = await speak(settings)
    chosen = {name.upper(): str(value) for name, value in limits.items()}
    doctor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "codegen_mcp.cli.main", "doctor", "--json"),
        env={**os.environ, **chosen, "BASE_WORKSPACE": str(state / "doctor")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await doctor.communicate()
    return {"worker": worker, "doctor": json.loads(said), "exit_code": doctor.returncode}


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        text: bytes = answer.read()
        return text.decode()


if __name__ == "__main__":
    from codegen_mcp.telemetry.logs import configure_logging

    configure_logging("error")
    sys.stdout.write(json.dumps(asyncio.run(voices(Path(sys.argv[1]), sys.argv[2]))) + "\n")
