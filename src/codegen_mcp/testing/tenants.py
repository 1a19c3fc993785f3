"""Two principals on one service, and something of each kind that belongs to the first."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts_pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.bootstrap.mcp import Served, open_served
from codegen_mcp.coordinator.principal import Quotas
from codegen_mcp.settings import Settings
from codegen_mcp.testing.access_rig import new_entry, write_tokens
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import TEST_SETTINGS, state_directory

SECRET = "alice-has-this-secret"
"""In everything that is hers."""
CODE = f"""
import pathlib
pathlib.Path("secret.txt").write_text("{SECRET}")
pathlib.Path("artifacts").mkdir(exist_ok=True)
pathlib.Path("artifacts/secret.txt").write_text("{SECRET}")
print("{SECRET}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """Names of one thing of each kind."""

    session: str
    task: str
    checkpoint: str
    artifact: str

    def unknown(self) -> Ids:
        """Names of the same form for things that never were."""
        made = {
            field.name: re.sub(
                r"[0-9a-f]{12,}",
                lambda found: secrets.token_hex(len(found[0]))[: len(found[0])],
                getattr(self, field.name),
            )
            for field in fields(self)
        }
        return Ids(**made)

    def hide(self, text: str) -> str:
        """Replace them in a text by their kinds."""
        for field in sorted(fields(self), key=lambda f: -len(getattr(self, f.name))):
            text = text.replace(getattr(self, field.name), f"<{field.name}>")
        return text


class Work:
    """Counts what a call makes the service do: rows looked up, and calls of the worker."""

    def __init__(self, served: Served) -> None:
        self.counted: Counter[str] = Counter()
        (worker,) = served.local.routing.workers.all()
        link: Any = worker.link
        link.unary = self._counting("worker", link.unary)
        directory: Any = served.local.routing.directory
        for name in ("get", "sessions", "acquire", "commit", "release", "end", "reserve"):
            setattr(directory, name, self._counting(name, getattr(directory, name)))

    def _counting(self, name: str, real: Any) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            method = f" {arguments[0]}" if name == "worker" else ""
            self.counted[name + method] += 1
            return await real(*arguments, **named)

        return call

    def take(self) -> Counter[str]:
        """Return what was counted since the last time."""
        found, self.counted = self.counted, Counter()
        return found


Asked = tuple[tuple[str, str], Counter[str]]
"""An answer with its ids hidden, and the work that it took."""


async def compared(
    ask: Callable[[Ids], Awaitable[Asked]], hers: Ids, unknown: Ids
) -> tuple[tuple[str, str], tuple[str, str], str]:
    """Ask about both; returns both answers, and how the work differed (empty: not).

    What the service does by itself meanwhile is counted too, so only what differs each time
    differs. Whoever asks first may find less remembered: the first answers do not count.
    """
    await ask(hers)
    await ask(unknown)
    unlike = ""
    for _ in range(3):
        answer, did = await ask(hers)
        other, did_other = await ask(unknown)
        unlike = f"did {did}, but for what never was: {did_other}" if did != did_other else ""
        if not unlike:
            break
    return answer, other, unlike


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """The service, and who is there."""

    served: Served
    wire: Wire
    tokens: Path
    alice: str
    """Her token."""
    bob: str
    hers: Ids
    """What is Alice's."""
    work: Work

    def as_(self, token: str) -> tuple[tuple[str, str], ...]:
        """Return metadata of a call with this token."""
        return (("authorization", f"Bearer {token}"),)

    @asynccontextmanager
    async def agent(self, token: str, mode: str = "2026-07-28") -> AsyncIterator[Client]:
        """Connect an agent with this token, by a revision of the protocol."""
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http:
            transport = streamable_http_client(self.served.mcp_url, http_client=http)
            async with Client(transport, mode=mode) as client:
                yield client


@asynccontextmanager
async def two_tenants(
    directory: Path, *, bobs: Quotas | None = None, **settings: Any
) -> AsyncIterator[Tenants]:
    """Serve both; everything of Alice's exists when the block begins.

    Args:
        directory: For the file of tokens.
        bobs: His quotas.
        settings: Of the service.
    """
    alice, hers = new_entry("alice")
    bob, his = new_entry("bob", quotas=bobs)
    tokens = directory / "tokens"
    write_tokens(tokens, hers, his)
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(state_directory())
        made = Settings(
            **{**TEST_SETTINGS, "http_port": "auto", "base_workspace": state, **settings},
            auth_tokens=str(tokens),
        )
        served = await stack.enter_async_context(open_served(made))
        wire = await stack.enter_async_context(dial(f"127.0.0.1:{served.grpc.port}"))
        ids = await make_things(wire, (("authorization", f"Bearer {alice}"),))
        yield Tenants(
            served=served,
            wire=wire,
            tokens=tokens,
            alice=alice,
            bob=bob,
            hers=ids,
            work=Work(served),
        )


@asynccontextmanager
async def shared_tenants(directory: Path) -> AsyncIterator[Tenants]:
    """``two_tenants`` for fixtures: opened and closed in one task, whichever tasks use it."""
    begun: asyncio.Future[Tenants] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        try:
            async with two_tenants(directory) as tenants:
                begun.set_result(tenants)
                await over.wait()
        except BaseException as error:
            if begun.done():
                raise
            begun.set_exception(error)

    holder = asyncio.create_task(hold())
    try:
        yield await begun
    finally:
        over.set()
        await holder


async def make_things(wire: Wire, metadata: Any) -> Ids:
    """Make one thing of each kind."""
    made = await wire.sessions.CreateSession(
        sessions_pb.CreateSessionRequest(metadata={"note": SECRET}), metadata=metadata
    )
    tool = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=CODE))
    task = tasks_pb.TaskRequest(session_id=made.session_id, typed_request=tool)
    stream = wire.tasks.ExecuteTask(task, metadata=metadata)
    last = [message async for message in stream][-1]
    assert last.result.status == tasks_pb.TaskResult.STATUS_SUCCESS, last
    saved = await wire.sessions.CheckpointSession(
        sessions_pb.CheckpointRequest(session_id=made.session_id, checkpoint_name="hers"),
        metadata=metadata,
    )
    listed = await wire.artifacts.ListArtifacts(
        artifacts_pb.ListArtifactsRequest(session_id=made.session_id), metadata=metadata
    )
    return Ids(
        session=made.session_id,
        task=last.task_id,
        checkpoint=saved.checkpoint_id,
        artifact=listed.artifacts[0].artifact_id,
    )
