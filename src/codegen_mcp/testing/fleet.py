"""A coordinator and workers as processes of their own, over one store of checkpoints.

Beats and waits are short here, so that a drill takes seconds; ``STATED_S`` is what follows from
them for a caller: by then each call has its answer, or an error that says what is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2, tools_pb2
from codegen_mcp.testing.fleet_net import HUB, FleetNet
from codegen_mcp.testing.fleet_process import FleetProcess
from codegen_mcp.testing.wire import RichError, Wire, dial

BEAT_S = 0.5
LOST_AFTER_S = 3.0
WAIT_S = 6.0
STATED_S = LOST_AFTER_S + WAIT_S + 6.0
"""Silence, the wait for the worker, and a restore on a machine with other things to do."""
PROMPT_S = 60.0
"""For things that have no stated time; a drill that waits longer has failed."""

SETTINGS: Mapping[str, str] = {
    "DISK_BYTES": str(64 << 20),
    "DISK_RESERVE_BYTES": "0",
    "DRAIN_GRACE_S": "10",
    "GRPC_PORT": "0",
    "LOG_LEVEL": "info",
    "MAX_SESSIONS": "6",
    "POOL_SIZE": "1",
    "ROUTE_WAIT_S": str(WAIT_S),
    "VOLUME": "plain",
    "WORKER_HEARTBEAT_S": str(BEAT_S),
    "WORKER_LOST_AFTER_S": str(LOST_AFTER_S),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a caller was told of a task, or of another call."""

    seconds: float
    stdout: str = ""
    ended_by: int = 0
    """Of a result; 0 where there was none."""
    code: str = ""
    """Of an error: the name of its status; empty is a result."""
    reason: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is a result."""
        return not self.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a session, by the directory's file."""

    worker: str | None
    incarnation: int | None
    epoch: int
    state: str
    checkpoint: str


class Fleet:
    """Made by ``open_fleet``."""

    def __init__(
        self,
        base: Path,
        coordinator: FleetProcess,
        workers: Mapping[str, FleetProcess],
        wire: Wire,
        net: FleetNet | None,
    ) -> None:
        self.base = base
        self.net = net
        self.coordinator = coordinator
        self.workers = workers
        self.wire = wire

    # ---- who is there

    async def joined(self, many: int) -> None:
        """Wait until so many workers can be given sessions."""
        await self.until(lambda: self._joined(many), f"{many} workers")

    async def _joined(self, many: int) -> bool:
        capacity = await self.wire.sessions.GetCapacity(pb.CapacityRequest(), timeout=5)
        return bool(capacity.metadata.get("workers") == str(many))

    async def until(self, holds: Any, what: str, *, within_s: float = PROMPT_S) -> None:
        """Wait for a condition that a coroutine function answers; errors of calls are a no."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with contextlib.suppress(aio.AioRpcError):
                if await holds():
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"after {within_s} s there is no sign of: {what}\n{self.logs()}")

    def logs(self) -> str:
        """The end of what each process wrote."""
        return "\n".join(
            f"---- {name}\n{process.log[-3000:]}"
            for name, process in (("coordinator", self.coordinator), *self.workers.items())
        )

    def holder(self, session_id: str) -> Holder:
        """Who holds a session, read behind the coordinator's back."""
        path = self.base / "hub" / "coordinator" / "directory.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = database.execute(
                "SELECT worker_id, incarnation, epoch, state, checkpoint_id FROM session "
                "WHERE session_id = ?",
                (session_id,),
            ).fetchone()
        assert found is not None, f"the directory has no {session_id}"
        worker, incarnation, epoch, state, checkpoint = found
        return Holder(
            worker=worker, incarnation=incarnation, epoch=epoch, state=state, checkpoint=checkpoint
        )

    # ---- what callers do

    async def session(self, on: str = "", **config: Any) -> str:
        """Make a session, on this worker if one is named."""
        request = pb.CreateSessionRequest(worker_id=on, config=pb.SessionConfig(**config))
        return str((await self.wire.sessions.CreateSession(request, timeout=60)).session_id)

    async def save(self, session_id: str) -> str:
        """Take a checkpoint; its id."""
        request = pb.CheckpointRequest(session_id=session_id, incremental=True)
        answer = await self.wire.sessions.CheckpointSession(request, timeout=60)
        return str(answer.checkpoint_id)

    async def run(self, session_id: str, code: str, task_id: str = "", **fields: Any) -> Answer:
        """Run Python once; whatever comes of it, without trying again."""
        request = task_execution_pb2.TaskRequest(
            session_id=session_id,
            task_id=task_id,
            typed_request=tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code)),
            **fields,
        )
        began = time.monotonic()
        last: task_execution_pb2.TaskResponse | None = None
        try:
            async for message in self.wire.tasks.ExecuteTask(request, timeout=PROMPT_S):
                last = message
        except aio.AioRpcError as error:
            return failed(error, time.monotonic() - began)
        seconds = time.monotonic() - began
        assert last is not None, "a stream without a last message"
        if last.HasField("error"):
            return Answer(
                seconds=seconds,
                code=last.error.code,
                reason=last.error.details.partition('"reason": "')[2].partition('"')[0],
                message=last.error.message,
            )
        assert last.HasField("result"), last
        return Answer(
            seconds=seconds,
            stdout=last.result.typed_response.run_python.stdout,
            ended_by=last.result.metadata.ended_by,
        )

    async def stdout(self, session_id: str, code: str, **fields: Any) -> str:
        """Run Python that has to succeed."""
        answer = await self.run(session_id, code, **fields)
        assert answer.ok, f"{answer}\n{self.logs()}"
        return answer.stdout


def dialled(net: FleetNet, name: str) -> dict[str, str]:
    """Settings of a worker in a namespace that its coordinator is to dial."""
    return {
        "HOST": "0.0.0.0",
        "INSECURE_NO_AUTH": "true",
        "GRPC_PORT": "50052",
        "ADVERTISE_ADDR": f"{net.address_of(name)}:50052",
    }


def failed(error: aio.AioRpcError, seconds: float) -> Answer:
    """Read what a failed call tells."""
    rich = RichError(error)
    code: grpc.StatusCode = error.code()
    return Answer(
        seconds=seconds, code=code.name, reason=rich.info.reason, message=error.details() or ""
    )


@asynccontextmanager
async def open_fleet(
    names: Sequence[str] = ("a", "b"),
    *,
    net: FleetNet | None = None,
    each: Mapping[str, Mapping[str, str]] | None = None,
    **settings: str,
) -> AsyncIterator[Fleet]:
    """Start a coordinator and workers with these names; all of them end with the block.

    Args:
        names: Of the workers.
        net: Namespaces of the same names, already open; None: all on this machine's loopback.
        each: Further settings of one worker.
        settings: Environment variables of all.
    """
    base = Path(tempfile.mkdtemp(prefix="codegen-fleet-", dir="/var/tmp"))
    os.chmod(base, 0o711)
    env = {**SETTINGS, **settings}
    port = 50050
    here = _own_loopback()
    coordinator = FleetProcess(
        "coordinator",
        {
            **env,
            "COORDINATOR_PORT": str(port),
            "BASE_WORKSPACE": str(base / "hub"),
            **({"HOST": here} if net is None else {"HOST": "0.0.0.0", "INSECURE_NO_AUTH": "true"}),
        },
        base / "coordinator.log",
        within=() if net is None else net.within(HUB),
    )
    workers = {
        name: FleetProcess(
            "worker",
            {
                **env,
                "COORDINATOR_ADDR": f"{here if net is None else net.hub_of(name)}:{port}",
                "WORKER_ID": name,
                "BASE_WORKSPACE": str(base / name),
                "CHECKPOINT_DIR": str(base / "store"),
                **(each or {}).get(name, {}),
            },
            base / f"{name}.log",
            within=() if net is None else net.within(name),
        )
        for name in names
    }
    address = f"{here}:{port}"
    processes = [coordinator, *workers.values()]
    try:
        await coordinator.start()
        await asyncio.gather(*(worker.start() for worker in workers.values()))
        if net is not None:
            await net.relay(base / "callers", port)
            address = f"unix:{base / 'callers'}"
        async with dial(address) as wire:
            fleet = Fleet(base, coordinator, workers, wire, net)
            await fleet.joined(len(names))
            yield fleet
        codes = await asyncio.gather(*(process.drain() for process in reversed(processes)))
        assert codes == [0] * len(processes), f"{codes}\n{fleet.logs()}"
    finally:
        await asyncio.gather(*(process.drain() for process in processes), return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


def _own_loopback() -> str:
    """One of 127/8 for this fleet alone: nobody takes its port while its coordinator is down."""
    first, second, third = (1 + secrets.randbelow(254) for _ in range(3))
    return f"127.{first}.{second}.{third}"
