"""Checkpoints and forks over the wire; ``worker`` names the engines that they are shown of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import (
    common_pb2,
    task_execution_pb2,
    tools_pb2,
    workspace_files_pb2,
)
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome, Stream
from codegen_mcp.testing.wire import RichError, Wire, dial, memory_worker
from codegen_mcp.testing.worker import worker_process

Opener = Callable[[], AbstractAsyncContextManager[Wire]]

ID = f"ses_{'0' * 32}.1.1"
"""Of no checkpoint."""


HOLD = "import time; print('up', flush=True); time.sleep(60)"


async def hold(command: Command, sink: OutputSink) -> Outcome:
    """Stand in for HOLD."""
    await sink.write(Stream.STDOUT, b"up\n")
    return await asyncio.Future()


@asynccontextmanager
async def over_memory() -> AsyncIterator[Wire]:
    async with memory_worker(max_sessions=6, runner=hold) as worker:
        yield worker.wire


@pytest.fixture(scope="module")
def engine_address() -> Iterator[str]:
    """Address of a real worker process that these tests have for themselves."""
    with asyncio.Runner() as runner:
        process = worker_process(max_sessions=6, pool_size=2)
        worker = runner.run(process.__aenter__())
        try:
            yield worker.address
        finally:
            runner.run(process.__aexit__(None, None, None))


@asynccontextmanager
async def over_engine(address: str) -> AsyncIterator[Wire]:
    """Yield a real worker without sessions and checkpoints, and leave it so."""
    async with dial(address) as wire:
        try:
            yield wire
        finally:
            for info in (await wire.sessions.ListSessions(pb.ListSessionsRequest())).sessions:
                await wire.sessions.DestroySession(
                    pb.DestroySessionRequest(session_id=info.session_id, force=True)
                )
            for item in (await listed(wire)).checkpoints:
                await wire.sessions.DeleteCheckpoint(
                    pb.DeleteCheckpointRequest(checkpoint_id=item.checkpoint_id)
                )


@pytest.fixture(params=["memory", "engine"])
def worker(request: pytest.FixtureRequest) -> Opener:
    if request.param == "memory":
        return over_memory
    address = request.getfixturevalue("engine_address")
    return lambda: over_engine(address)


async def test_a_checkpoint_brings_the_files_back_into_a_new_session(worker):
    async with worker() as wire:
        asked = {
            "workspace_id": "ws",
            "user_id": "me",
            "metadata": {"k": "v"},
            "config": pb.SessionConfig(
                env_vars={"A": "1"}, limits=common_pb2.ResourceLimits(max_pids=99)
            ),
        }
        session_id = await wire.session(**asked)
        await write(wire, session_id, "a.txt", b"first")
        saved = await save(wire, session_id, checkpoint_name="before the change")
        await write(wire, session_id, "a.txt", b"second")
        restored = await wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, create_new_session=True)
        )
        files = (
            await read(wire, restored.session_id, "a.txt"),
            await read(wire, session_id, "a.txt"),
        )
        status = await state(wire, restored.session_id)
        kept = await wire.sessions.GetSessionMetadata(
            pb.GetSessionMetadataRequest(session_id=restored.session_id)
        )
    assert files == (b"first", b"second")
    assert restored.session_id != session_id
    assert restored.lost == ""
    assert restored.state == status.state
    assert restored.checkpoint_metadata == saved.metadata
    assert status.restored_from == saved.checkpoint_id
    assert (status.info.workspace_id, status.info.user_id) == ("ws", "me")
    assert status.info.limits.max_pids == 99
    assert dict(kept.metadata) == {"k": "v"}


async def test_a_checkpoint_says_what_it_holds(worker):
    async with worker() as wire:
        session_id = await wire.session(
            workspace_id="ws", metadata={"k": "v"}, config=pb.SessionConfig(env_vars={"A": "1"})
        )
        await write(wire, session_id, "a.txt", b"12345")
        full = await save(wire, session_id, checkpoint_name="one")
        await write(wire, session_id, "b.txt", b"123")
        second = await save(wire, session_id, incremental=True)
    first, facts = full.metadata, second.metadata
    assert full.checkpoint_id == first.checkpoint_id == f"{session_id}.1.1"
    assert (first.session_id, first.workspace_id) == (session_id, "ws")
    assert (first.checkpoint_name, first.parent_checkpoint_id) == ("one", "")
    assert list(first.chain_checkpoint_ids) == [full.checkpoint_id]
    assert (dict(first.env_vars), dict(first.session_metadata)) == ({"A": "1"}, {"k": "v"})
    assert list(first.modified_files) == ["a.txt"]
    assert len(first.checksum_sha256) == 64
    assert (full.size_bytes, full.storage_url) == (first.size_bytes, first.storage_url)
    assert full.storage_url
    assert first.limits.max_memory_bytes > 0
    assert first.interpreter
    assert first.created_at_ms > 0
    assert first.trigger == "request"
    assert first.durability == common_pb2.DURABILITY_INTERVAL
    assert facts.parent_checkpoint_id == full.checkpoint_id
    assert list(facts.chain_checkpoint_ids) == [full.checkpoint_id, second.checkpoint_id]
    assert (list(facts.modified_files), facts.modified_count) == (["b.txt"], 1)
    assert facts.total_bytes == first.total_bytes + 3
    assert facts.entry_count == first.entry_count + 1


async def test_restoring_in_place_says_what_is_lost_and_keeps_the_id(worker):
    async with worker() as wire:
        session_id = await wire.session()
        await write(wire, session_id, "a.txt", b"first")
        saved = await save(wire, session_id)
        await write(wire, session_id, "a.txt", b"second")
        await write(wire, session_id, "b.txt", b"new")
        restored = await wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=saved.checkpoint_id)
        )
        content = await read(wire, session_id, "a.txt")
        gone = await refused(read(wire, session_id, "b.txt"))
        status = await state(wire, session_id)
    assert restored.session_id == session_id
    assert restored.lost
    assert content == b"first"
    assert gone.code is grpc.StatusCode.NOT_FOUND
    assert (status.restored_from, status.lost) == (saved.checkpoint_id, restored.lost)


async def test_a_session_that_ended_comes_back_under_its_own_id(worker):
    async with worker() as wire:
        session_id = await wire.session()
        await write(wire, session_id, "a.txt", b"kept")
        ended = await wire.sessions.DestroySession(
            pb.DestroySessionRequest(session_id=session_id, save_checkpoint=True)
        )
        missing = await refused(state(wire, session_id))
        restored = await wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=ended.checkpoint_id)
        )
        content = await read(wire, session_id, "a.txt")
    assert ended.destroyed
    assert restored.checkpoint_metadata.trigger == "destroy"
    assert missing.code is grpc.StatusCode.NOT_FOUND
    assert restored.session_id == session_id
    assert content == b"kept"


async def test_status_names_the_newest_checkpoint(worker):
    async with worker() as wire:
        session_id = await wire.session()
        none = (await state(wire, session_id)).last_checkpoint_id
        await save(wire, session_id)
        second = await save(wire, session_id, incremental=True)
        newest = (await state(wire, session_id)).last_checkpoint_id
    assert none == ""
    assert newest == second.checkpoint_id


async def test_the_durability_that_was_asked_for_is_the_one_that_holds(worker):
    config = pb.SessionConfig(
        auto_restore=True,
        durability=common_pb2.DURABILITY_TURN,
        checkpoint_interval_seconds=120,
    )
    async with worker() as wire:
        status = await state(wire, await wire.session(config=config))
        plain = await state(wire, await wire.session())
    assert status.auto_restore
    assert status.durability == common_pb2.DURABILITY_TURN
    assert status.checkpoint_interval_seconds == 120
    assert not plain.auto_restore
    assert plain.durability == common_pb2.DURABILITY_INTERVAL


async def test_forks_are_sessions_of_their_own(worker):
    async with worker() as wire:
        session_id = await wire.session(metadata={"k": "v", "who": "first"})
        await write(wire, session_id, "a.txt", b"shared")
        forked = await wire.sessions.ForkSession(
            pb.ForkRequest(session_id=session_id, count=2, metadata={"who": "copy"})
        )
        one, two = forked.session_ids
        await write(wire, one, "a.txt", b"changed")
        contents = [await read(wire, each, "a.txt") for each in (session_id, one, two)]
        metadata = [
            dict(
                (
                    await wire.sessions.GetSessionMetadata(
                        pb.GetSessionMetadataRequest(session_id=each)
                    )
                ).metadata
            )
            for each in (session_id, one, two)
        ]
    assert forked.session_id == one
    assert len({session_id, one, two}) == 3
    assert contents == [b"shared", b"changed", b"shared"]
    assert metadata == [{"k": "v", "who": "first"}, *[{"k": "v", "who": "copy"}] * 2]


async def test_forks_are_made_all_or_none(worker):
    async with worker() as wire:
        session_id = await wire.session()
        error = await refused(
            wire.sessions.ForkSession(pb.ForkRequest(session_id=session_id, count=6))
        )
        room = await wire.sessions.GetCapacity(pb.CapacityRequest())
        bad = await refused(
            wire.sessions.ForkSession(pb.ForkRequest(session_id=session_id, count=-1))
        )
        single = await wire.sessions.ForkSession(pb.ForkRequest(session_id=session_id))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert room.active_sessions == 1
    assert bad.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(single.session_ids) == [single.session_id]


async def test_pages_of_checkpoints_are_newest_first_and_stay_true_while_others_go(worker):
    async with worker() as wire:
        mine = await wire.session(workspace_id="mine")
        other = await wire.session(workspace_id="other")
        made = [(await save(wire, mine)).checkpoint_id for _ in range(5)]
        apart = (await save(wire, other)).checkpoint_id
        first = await listed(wire, session_id=mine, page_size=2)
        shown = [item.checkpoint_id for item in first.checkpoints]
        gone = shown[-1]
        await wire.sessions.DeleteCheckpoint(pb.DeleteCheckpointRequest(checkpoint_id=gone))
        late = (await save(wire, mine)).checkpoint_id
        token = first.next_page_token
        while token:
            page = await listed(wire, session_id=mine, page_size=2, page_token=token)
            shown += [item.checkpoint_id for item in page.checkpoints]
            token = page.next_page_token
        every = [item.checkpoint_id for item in (await listed(wire)).checkpoints]
        of_workspace = await listed(wire, workspace_id="other")
        bad = await refused(listed(wire, page_token="1.nonsense"))
        nobody = await listed(wire, session_id="ses_" + "0" * 32)
    assert shown == made[::-1]
    assert set(every) == {*made, apart, late} - {gone}
    assert [item.checkpoint_id for item in of_workspace.checkpoints] == [apart]
    assert bad.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not nobody.checkpoints


async def test_a_checkpoint_that_others_build_on_can_be_deleted(worker):
    async with worker() as wire:
        session_id = await wire.session()
        await write(wire, session_id, "a.txt", b"base")
        base = (await save(wire, session_id)).checkpoint_id
        await write(wire, session_id, "b.txt", b"more")
        child = (await save(wire, session_id, incremental=True)).checkpoint_id
        answer = await wire.sessions.DeleteCheckpoint(
            pb.DeleteCheckpointRequest(checkpoint_id=base)
        )
        missing = await refused(wire.sessions.RestoreSession(pb.RestoreRequest(checkpoint_id=base)))
        restored = await wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=child, create_new_session=True)
        )
        content = await read(wire, restored.session_id, "a.txt")
    assert answer.deleted
    assert missing.code is grpc.StatusCode.NOT_FOUND
    assert missing.info.reason == "CHECKPOINT_NOT_FOUND"
    assert content == b"base"


async def test_one_checkpoint_can_be_asked_for(worker):
    async with worker() as wire:
        session_id = await wire.session()
        saved = await save(wire, session_id, checkpoint_name="n")
        answer = await wire.sessions.GetCheckpoint(
            pb.GetCheckpointRequest(checkpoint_id=saved.checkpoint_id)
        )
    assert answer.checkpoint.checkpoint_name == "n"
    assert answer.checkpoint.metadata == saved.metadata


@pytest.mark.parametrize("checkpoint_id", ["", "nonsense", ID, f"{ID}/../x", "ses_\0"])
async def test_an_id_of_nothing_is_not_found(worker, checkpoint_id):
    async with worker() as wire:
        sessions = wire.sessions
        errors = [
            await refused(call)
            for call in (
                sessions.RestoreSession(
                    pb.RestoreRequest(checkpoint_id=checkpoint_id, create_new_session=True)
                ),
                sessions.RestoreSession(pb.RestoreRequest(checkpoint_id=checkpoint_id)),
                sessions.GetCheckpoint(pb.GetCheckpointRequest(checkpoint_id=checkpoint_id)),
                sessions.DeleteCheckpoint(pb.DeleteCheckpointRequest(checkpoint_id=checkpoint_id)),
            )
        ]
    assert {error.code for error in errors} == {grpc.StatusCode.NOT_FOUND}
    assert {error.info.reason for error in errors} == {"CHECKPOINT_NOT_FOUND"}


async def test_a_session_that_is_not_there_cannot_be_saved_or_forked(worker):
    nobody = "ses_" + "0" * 32
    async with worker() as wire:
        sessions = wire.sessions
        errors = [
            await refused(call)
            for call in (
                sessions.CheckpointSession(pb.CheckpointRequest(session_id=nobody)),
                sessions.ForkSession(pb.ForkRequest(session_id=nobody)),
                sessions.DestroySession(
                    pb.DestroySessionRequest(session_id=nobody, save_checkpoint=True)
                ),
            )
        ]
    assert {error.code for error in errors} == {grpc.StatusCode.NOT_FOUND}
    assert {error.info.reason for error in errors} == {"SESSION_NOT_FOUND"}


async def test_a_restore_that_is_meant_for_another_worker_is_refused(worker):
    async with worker() as wire:
        session_id = await wire.session()
        saved = await save(wire, session_id)
        error = await refused(
            wire.sessions.RestoreSession(
                pb.RestoreRequest(
                    checkpoint_id=saved.checkpoint_id,
                    worker_id="another",
                    create_new_session=True,
                )
            )
        )
        room = await wire.sessions.GetCapacity(pb.CapacityRequest())
        named = await wire.sessions.RestoreSession(
            pb.RestoreRequest(
                checkpoint_id=saved.checkpoint_id,
                worker_id=room.worker_id,
                create_new_session=True,
            )
        )
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.info.reason == "WRONG_WORKER"
    assert room.active_sessions == 1
    assert named.worker_id == room.worker_id


@pytest.mark.parametrize("name", ["a/b", "x" * 129, " leading", "new\nline"])
async def test_a_bad_name_is_refused_and_nothing_is_saved(worker, name):
    async with worker() as wire:
        session_id = await wire.session()
        error = await refused(save(wire, session_id, checkpoint_name=name))
        kept = await listed(wire, session_id=session_id)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not kept.checkpoints


async def test_a_durability_of_a_later_version_is_refused_by_name(worker):
    async with worker() as wire:
        error = await refused(
            wire.sessions.CreateSession(
                pb.CreateSessionRequest(config=pb.SessionConfig(durability=99))
            )
        )
        zero = await refused(
            wire.sessions.CreateSession(
                pb.CreateSessionRequest(config=pb.SessionConfig(checkpoint_interval_seconds=0))
            )
        )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.info.metadata["field"] == "config.durability"
    assert zero.info.metadata["field"] == "config.checkpoint_interval_seconds"


async def test_a_session_that_works_is_saved_but_neither_copied_nor_replaced(worker):
    async with worker() as wire, working_session(wire) as session_id:
        saved = await save(wire, session_id)
        errors = [
            await refused(wire.sessions.ForkSession(pb.ForkRequest(session_id=session_id))),
            await refused(
                wire.sessions.RestoreSession(pb.RestoreRequest(checkpoint_id=saved.checkpoint_id))
            ),
        ]
        active = (await state(wire, session_id)).info.active_tasks
    assert {error.code for error in errors} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert {error.info.reason for error in errors} == {"SESSION_BUSY"}
    assert active == 1


async def test_a_session_that_works_is_saved_and_ended_only_by_force(worker):
    async with worker() as wire, working_session(wire) as session_id:
        request = pb.DestroySessionRequest(session_id=session_id, save_checkpoint=True)
        error = await refused(wire.sessions.DestroySession(request))
        active = (await state(wire, session_id)).info.active_tasks
        request.force = True
        ended = await wire.sessions.DestroySession(request)
        gone = await refused(state(wire, session_id))
        kept = await listed(wire, session_id=session_id)
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.info.reason == "SESSION_BUSY"
    assert active == 1
    assert gone.code is grpc.StatusCode.NOT_FOUND
    assert [item.checkpoint_id for item in kept.checkpoints] == [ended.checkpoint_id]


@asynccontextmanager
async def working_session(wire: Wire) -> AsyncIterator[str]:
    """Yield a session in which a program runs."""
    session_id = await wire.session()
    program = tools_pb2.RunPythonRequest(code=HOLD)
    call = wire.tasks.ExecuteTask(
        task_execution_pb2.TaskRequest(
            session_id=session_id, typed_request=tools_pb2.ToolRequest(run_python=program)
        )
    )
    async for message in call:
        if message.WhichOneof("payload") == "log":
            break
    try:
        yield session_id
    finally:
        call.cancel()


async def write(wire: Wire, session_id: str, path: str, data: bytes) -> None:
    request = tools_pb2.FsWriteRequest(path=path, data=data)
    last = (await wire.run(session_id, tools_pb2.ToolRequest(fs_write=request)))[-1]
    assert last.WhichOneof("payload") == "result", last


async def read(wire: Wire, session_id: str, path: str) -> bytes:
    call = wire.files.Download(
        workspace_files_pb2.DownloadRequest(session_id=session_id, path=path)
    )
    return b"".join([message.data async for message in call])


async def save(wire: Wire, session_id: str, **fields: object) -> pb.CheckpointResponse:
    request = pb.CheckpointRequest(session_id=session_id, **fields)
    return await wire.sessions.CheckpointSession(request)


async def state(wire: Wire, session_id: str) -> pb.SessionStatusResponse:
    return await wire.sessions.GetSessionStatus(pb.SessionStatusRequest(session_id=session_id))


async def listed(wire: Wire, **fields: object) -> pb.ListCheckpointsResponse:
    return await wire.sessions.ListCheckpoints(pb.ListCheckpointsRequest(**fields))


async def refused(call: object) -> RichError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return RichError(caught.value)
