from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.coordinator.auth.quotas import QuotaLedger
from codegen_mcp.coordinator.mcp.failures import META
from codegen_mcp.coordinator.principal import Principal, Quotas
from codegen_mcp.core.errors import Full
from codegen_mcp.testing.manual_clock import ManualClock
from codegen_mcp.testing.tenants import Tenants, two_tenants
from codegen_mcp.testing.wire import RichError

LIST = sessions_pb.ListSessionsRequest()
ECHO = tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message="x"))
SLEEP = tools_pb2.ToolRequest(
    run_python=tools_pb2.RunPythonRequest(code="import time; time.sleep(60)")
)


async def refused(call: Any) -> RichError:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return RichError(error.value)


def check_quota(error: RichError, quota: str) -> None:
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.info.reason == "QUOTA_EXCEEDED"
    assert error.info.metadata["quota"] == quota
    assert error.has_retry
    assert error.retry.retry_delay.ToMilliseconds() > 0


async def test_calls_of_a_minute_are_counted_for_each_principal_alone(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, bobs=Quotas(calls_per_minute=5)) as tenants:
        bob, alice = tenants.as_(tenants.bob), tenants.as_(tenants.alice)
        for _ in range(5):
            await tenants.wire.sessions.ListSessions(LIST, metadata=bob)
        check_quota(
            await refused(tenants.wire.sessions.ListSessions(LIST, metadata=bob)),
            "calls_per_minute",
        )
        task = tasks_pb.TaskRequest(session_id=tenants.hers.session, typed_request=ECHO)
        check_quota(
            await refused(tenants.wire.tasks.ExecuteTask(task, metadata=bob).read()),
            "calls_per_minute",
        )
        await tenants.wire.sessions.ListSessions(LIST, metadata=alice)


async def test_a_tool_call_counts_once_whatever_it_asks_for(tmp_path: Path) -> None:
    async with (
        two_tenants(tmp_path, bobs=Quotas(calls_per_minute=4)) as tenants,
        tenants.agent(tenants.bob) as agent,
    ):
        for _ in range(4):  # each makes a session, runs, and looks
            result = await agent.call_tool("run_python", {"code": "print(1)"})
            assert not result.is_error, result
        result = await agent.call_tool("session_list", {})
        assert result.is_error
        facts = (result.meta or {})[META]
        assert facts["status"] == "RESOURCE_EXHAUSTED"
        assert facts["reason"] == "QUOTA_EXCEEDED"
        assert facts["retry_after_ms"] > 0
        assert "Try again after" in result.content[0].text  # type: ignore[union-attr]


async def test_sessions_are_counted_also_when_many_are_asked_for_at_once(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, bobs=Quotas(sessions=2)) as tenants:
        bob = tenants.as_(tenants.bob)
        create = sessions_pb.CreateSessionRequest()
        asked = [tenants.wire.sessions.CreateSession(create, metadata=bob) for _ in range(6)]
        done = await asyncio.gather(*asked, return_exceptions=True)
        made = [one for one in done if not isinstance(one, BaseException)]
        assert len(made) == 2
        for error in done:
            if isinstance(error, aio.AioRpcError):
                check_quota(RichError(error), "sessions")
        fork = sessions_pb.ForkRequest(session_id=made[0].session_id)
        check_quota(
            await refused(tenants.wire.sessions.ForkSession(fork, metadata=bob)), "sessions"
        )
        end = sessions_pb.DestroySessionRequest(session_id=made[1].session_id)
        await tenants.wire.sessions.DestroySession(end, metadata=bob)
        await tenants.wire.sessions.ForkSession(fork, metadata=bob)
        check_quota(
            await refused(tenants.wire.sessions.CreateSession(create, metadata=bob)), "sessions"
        )
        await tenants.wire.sessions.CreateSession(create, metadata=tenants.as_(tenants.alice))


@asynccontextmanager
async def with_session(tenants: Tenants) -> AsyncIterator[str]:
    made = await tenants.wire.sessions.CreateSession(
        sessions_pb.CreateSessionRequest(), metadata=tenants.as_(tenants.bob)
    )
    yield made.session_id


async def test_tasks_at_once_are_counted_until_their_end(tmp_path: Path) -> None:
    async with (
        two_tenants(tmp_path, bobs=Quotas(tasks=2)) as tenants,
        with_session(tenants) as session,
    ):
        wire, bob = tenants.wire, tenants.as_(tenants.bob)

        def run(task_id: str, tool: tools_pb2.ToolRequest, *, detach: bool = False) -> Any:
            request = tasks_pb.TaskRequest(
                session_id=session,
                task_id=task_id,
                typed_request=tool,
                on_disconnect=tasks_pb.ON_DISCONNECT_DETACH
                if detach
                else tasks_pb.ON_DISCONNECT_CANCEL,
            )
            return wire.tasks.ExecuteTask(request, metadata=bob)

        async def state(task_id: str) -> str:
            request = tasks_pb.StatusRequest(session_id=session, task_id=task_id)
            try:
                return str((await wire.tasks.GetTaskStatus(request, metadata=bob)).state)
            except aio.AioRpcError:
                return ""

        async def until(task_id: str, *wanted: str) -> None:
            async with asyncio.timeout(20):
                while await state(task_id) not in wanted:
                    await asyncio.sleep(0.02)

        first, second = run("a", SLEEP, detach=True), run("b", SLEEP)
        reading = [asyncio.ensure_future(call.read()) for call in (first, second)]
        await until("a", "running", "queued")
        await until("b", "running", "queued")
        check_quota(await refused(run("c", ECHO).read()), "tasks")
        first.cancel()  # it goes on, and counts
        check_quota(await refused(run("c", ECHO).read()), "tasks")
        again = run("a", SLEEP)  # the same task is none more
        rest = asyncio.ensure_future(again.read())
        cancel = tasks_pb.CancelRequest(session_id=session, task_id="a")
        await wire.tasks.CancelTask(cancel, metadata=bob)
        await rest
        async with asyncio.timeout(20):
            assert [m.WhichOneof("payload") async for m in run("c", ECHO)][-1] == "result"
        second.cancel()  # it is cancelled, and does not count when that is done
        await until("b", "finished")
        slept = run("d", SLEEP, detach=True), run("e", SLEEP, detach=True)
        reading += [asyncio.ensure_future(call.read()) for call in slept]
        await until("d", "running", "queued")
        await until("e", "running", "queued")
        check_quota(await refused(run("f", ECHO).read()), "tasks")
        for call in slept:
            call.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


def test_a_minute_fills_again_evenly() -> None:
    clock = ManualClock()
    ledger = QuotaLedger(clock)
    bob = Principal(name="bob", quotas=Quotas(calls_per_minute=60))
    for _ in range(60):
        ledger.pay(bob)
    with pytest.raises(Full) as error:
        ledger.pay(bob)
    assert error.value.retry_after_s == pytest.approx(1.0)
    clock.advance(1.0)
    ledger.pay(bob)
    with pytest.raises(Full):
        ledger.pay(bob)
    clock.advance(3600.0)
    for _ in range(60):
        ledger.pay(bob)
    with pytest.raises(Full):
        ledger.pay(bob)


def test_what_a_paid_call_makes_is_paid_for() -> None:
    ledger = QuotaLedger(ManualClock())
    bob = Principal(name="bob", quotas=Quotas(calls_per_minute=1))
    with ledger.call(bob):
        ledger.pay(bob)
        with ledger.call(bob):
            pass
    with pytest.raises(Full), ledger.call(bob):
        pass
