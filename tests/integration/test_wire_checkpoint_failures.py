"""What goes wrong with checkpoints, as callers hear it: nothing is lost, and it is said why."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.core import errors
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.base import TaskSubmission
from codegen_mcp.testing.wire import RichError, exited, memory_worker, scripted


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.StoreUnavailable("the store is away"), grpc.StatusCode.UNAVAILABLE),
        (errors.Full("the disk is full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.LimitExceeded("too many files"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.WrongState("one is being taken"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_a_session_whose_last_checkpoint_fails_lives_on(error, code, force):
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        worker.engine.checkpoints.refusal = error
        request = pb.DestroySessionRequest(session_id=session_id, save_checkpoint=True, force=force)
        refusal = await refused(worker.wire.sessions.DestroySession(request))
        status = await worker.wire.sessions.GetSessionStatus(
            pb.SessionStatusRequest(session_id=session_id)
        )
    assert refusal.code is code
    assert refusal.info.reason == error.reason
    assert status.last_checkpoint_id == ""


async def test_what_a_task_did_while_its_session_was_saved_is_saved_too():
    async def leave(sink):
        await sink.write(Stream.STDOUT, b"done\n")
        return exited()

    async with memory_worker(runner=scripted(go=leave)) as worker:
        session_id = await worker.wire.session()
        save, taken = worker.engine.checkpoints.save, []

        async def save_while_a_task_runs(session_id, **options):
            info = await save(session_id, **options)
            if not taken:
                await worker.engine.sessions.workspace(session_id).write(
                    "late.txt", b"late", create_dirs=False, mode=None
                )
                task_id = await worker.engine.tasks.submit(
                    TaskSubmission(
                        task_id="",
                        session_id=session_id,
                        tool="run.python",
                        arguments={"code": "go"},
                    )
                )
                async for _ in worker.engine.tasks.events(task_id, session_id):
                    pass
            taken.append(info)
            return info

        worker.engine.checkpoints.save = save_while_a_task_runs
        ended = await worker.wire.sessions.DestroySession(
            pb.DestroySessionRequest(session_id=session_id, save_checkpoint=True)
        )
        restored = await worker.wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=ended.checkpoint_id)
        )
        files = worker.engine.sessions.workspace(restored.session_id).entries
    assert [str(info.checkpoint_id) for info in taken][-1] == ended.checkpoint_id
    assert files[b"late.txt"].data == b"late"


async def test_a_damaged_checkpoint_is_data_loss_and_changes_nothing():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        saved = await worker.wire.sessions.CheckpointSession(
            pb.CheckpointRequest(session_id=session_id)
        )
        worker.engine.checkpoints.damage(saved.checkpoint_id)
        before = worker.engine.sessions.list()
        failures = [
            await refused(
                worker.wire.sessions.RestoreSession(
                    pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, create_new_session=new)
                )
            )
            for new in (True, False)
        ]
        after = worker.engine.sessions.list()
    assert {error.code for error in failures} == {grpc.StatusCode.DATA_LOSS}
    assert after == before


async def test_forks_whose_metadata_is_too_large_are_not_made():
    async with memory_worker() as worker:
        session_id = await worker.wire.session(metadata={"a": "x" * 200_000})
        error = await refused(
            worker.wire.sessions.ForkSession(
                pb.ForkRequest(session_id=session_id, metadata={"b": "x" * 100_000})
            )
        )
        left = [view.session_id for view in worker.engine.sessions.list()]
    assert error.info.reason == "LIMIT_EXCEEDED"
    assert left == [session_id]


async def test_forks_whose_metadata_cannot_be_kept_are_ended_again():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()

        async def refuse(session_id, metadata, *, replace):
            raise errors.Unavailable("the disk is away")

        worker.engine.sessions.update_metadata = refuse
        error = await refused(
            worker.wire.sessions.ForkSession(
                pb.ForkRequest(session_id=session_id, count=3, metadata={"b": "x"})
            )
        )
        left = [view.session_id for view in worker.engine.sessions.list()]
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert left == [session_id]


async def test_a_draining_worker_saves_but_makes_no_more_sessions():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        await worker.server.drain()
        sessions = worker.wire.sessions
        saved = await sessions.CheckpointSession(pb.CheckpointRequest(session_id=session_id))
        failures = await asyncio.gather(
            refused(
                sessions.RestoreSession(
                    pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, create_new_session=True)
                )
            ),
            refused(sessions.ForkSession(pb.ForkRequest(session_id=session_id))),
        )
    assert {error.info.reason for error in failures} == {"DRAINING"}


async def refused(call):
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return RichError(caught.value)
