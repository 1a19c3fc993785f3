"""task_status, task_result, task_cancel: work that goes on, or has ended, by its handle."""

from __future__ import annotations

import asyncio

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator.mcp.answers import (
    InstallAnswer,
    RunAnswer,
    TaskCancelAnswer,
    TaskResultAnswer,
    TaskStatusAnswer,
)
from codegen_mcp.coordinator.mcp.arguments import TaskArguments, TaskResultArguments
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.follow import Followed, task_error
from codegen_mcp.coordinator.mcp.outputs import end_of_task, part
from codegen_mcp.coordinator.mcp.run_tools import finished
from codegen_mcp.coordinator.mcp.sessions import Chosen
from codegen_mcp.coordinator.mcp.tasks import session_of, status
from codegen_mcp.coordinator.mcp.wire_tools import ended_by
from codegen_mcp.coordinator.mcp.words import cut_marker, duration, paragraphs, shown_name
from codegen_mcp.core.errors import WorkerError


def task_session(call: Call, arguments: TaskArguments) -> str:
    """Return the session of a task: its handle says it, else the caller must."""
    return arguments.session_id or session_of(arguments.task_id) or call.sessions.existing("")


async def task_status(call: Call, arguments: TaskArguments) -> Reply:
    """How a task is now."""

    async def work(chosen: Chosen) -> Reply:
        found = await status(call, chosen.session_id, arguments.task_id)
        answer = TaskStatusAnswer(
            session_id=chosen.session_id,
            restored_from=chosen.restored_from,
            lost=chosen.lost,
            task_id=arguments.task_id,
            tool=shown_name(call.config, found.tool),
            state=found.state,
            status=_status(found.status),
            ended_by=ended_by(found.ended_by),
            elapsed_ms=found.elapsed_ms,
            stdout_bytes=found.stdout_bytes,
            stderr_bytes=found.stderr_bytes,
            stage=found.progress.message or found.progress.stage,
        )
        return Reply(
            value=answer,
            text=paragraphs(
                f"{answer.tool} is {answer.state} ({duration(answer.elapsed_ms)})",
                f"{answer.status}, ended by {answer.ended_by}" if answer.ended_by else "",
                answer.stage,
                f"printed: {answer.stdout_bytes:,} bytes of stdout, "
                f"{answer.stderr_bytes:,} bytes of stderr",
            ),
        )

    return await call.in_session(task_session(call, arguments), work)


async def task_cancel(call: Call, arguments: TaskArguments) -> Reply:
    """End a task early; what it wrote and printed until then stays."""

    async def work(chosen: Chosen) -> Reply:
        done = await call.unary(
            "TaskExecution/CancelTask",
            pb.CancelRequest(
                task_id=arguments.task_id,
                session_id=chosen.session_id,
                reason=shown_name(call.config, "task.cancel"),
            ),
            pb.CancelResponse,
        )
        answer = TaskCancelAnswer(
            session_id=chosen.session_id,
            task_id=arguments.task_id,
            cancelled=done.cancelled,
            state=done.state,
        )
        words = "it was cancelled" if done.cancelled else f"nothing to cancel: it was {done.state}"
        return Reply(value=answer, text=words)

    return await call.in_session(task_session(call, arguments), work)


async def task_result(call: Call, arguments: TaskResultArguments) -> Reply:
    """Wait for a task's end for a while, then tell its result or how far it is."""

    async def work(chosen: Chosen) -> Reply:
        call.progress.running()
        session_id, task_id = chosen.session_id, arguments.task_id
        got: Followed | None = None
        try:
            async with asyncio.timeout(arguments.wait_seconds or None):
                if not arguments.wait_seconds:
                    now = await status(call, session_id, task_id)
                    if now.state != "finished":
                        raise TimeoutError
                got = await end_of_task(call, session_id, task_id)
        except TimeoutError:
            return await _unfinished(call, chosen, task_id)
        now = await status(call, session_id, task_id)
        if got.error is not None:
            return _failed(call, chosen, task_id, now.tool, task_error(got.error))
        reply = await finished(call, now.tool, chosen, got)
        facts = reply.value.model_dump()
        assert isinstance(reply.value, (RunAnswer, InstallAnswer))
        return Reply(
            value=TaskResultAnswer(**facts, tool=shown_name(call.config, now.tool)),
            text=reply.text,
            blocks=reply.blocks,
        )

    return await call.in_session(task_session(call, arguments), work)


async def _unfinished(call: Call, chosen: Chosen, task_id: str) -> Reply:
    """Say how far it is, with the end of what it has printed."""
    now = await status(call, chosen.session_id, task_id)
    room = call.config.form_bytes // 2
    shown = {}
    for name, total in (("stdout", now.stdout_bytes), ("stderr", now.stderr_bytes)):
        begin = max(total - room // 2, 0)
        data = (await part(call, chosen.session_id, task_id, name, begin, room // 2))[0]
        text = data.decode("utf-8", "replace")
        if begin:
            handle = f'task_id="{task_id}", stream="{name}", offset=0'
            text = f"{cut_marker(call.config, name, begin, total, handle)}\n{text}"
        shown[name] = text
    answer = TaskResultAnswer(
        session_id=chosen.session_id,
        restored_from=chosen.restored_from,
        lost=chosen.lost,
        task_id=task_id,
        state=now.state,
        tool=shown_name(call.config, now.tool),
        duration_ms=now.elapsed_ms,
        stdout=shown["stdout"],
        stderr=shown["stderr"],
        stdout_bytes=now.stdout_bytes,
        stderr_bytes=now.stderr_bytes,
        notice="It has not ended; ask again.",
    )
    return Reply(
        value=answer,
        text=paragraphs(
            answer.stdout,
            f"stderr:\n{answer.stderr}" if answer.stderr else "",
            f"[{now.state} since {duration(now.elapsed_ms)}; ask again]",
        ),
    )


def _failed(call: Call, chosen: Chosen, task_id: str, tool: str, error: WorkerError) -> Reply:
    """Tell of a task whose tool could not do its work: that is this tool's answer."""
    return Reply(
        value=TaskResultAnswer(
            session_id=chosen.session_id,
            task_id=task_id,
            state="finished",
            tool=shown_name(call.config, tool),
            error=error.message,
        ),
        text=f"{shown_name(call.config, tool)} could not do its work: {error.message}",
    )


def _status(value: int) -> str:
    try:
        name = pb.TaskResult.Status.Name(value)  # type: ignore[arg-type]  # unknown values raise
    except ValueError:
        return ""
    short = name.removeprefix("STATUS_").lower()
    return "" if short == "unspecified" else short
