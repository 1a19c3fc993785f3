"""output_read: any part of what a task printed, while its session lives."""

from __future__ import annotations

import base64

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator.mcp.answers import OutputAnswer
from codegen_mcp.coordinator.mcp.arguments import OutputReadArguments
from codegen_mcp.coordinator.mcp.budget import fitting
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.config import MAX_READ_BYTES
from codegen_mcp.coordinator.mcp.follow import Followed, follow
from codegen_mcp.coordinator.mcp.run_reply import session_fields, session_words
from codegen_mcp.coordinator.mcp.sessions import Chosen
from codegen_mcp.coordinator.mcp.tasks import ATTACH, session_of, status
from codegen_mcp.coordinator.mcp.words import paragraphs, shown_name
from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.server.closing import closing

OUTPUT_GONE = "OUTPUT_EXPIRED"
_ROOM_BYTES = 400 * 1024
"""Of one form of the answer as JSON."""


async def output_read(call: Call, arguments: OutputReadArguments) -> Reply:
    """Read a range."""
    wanted = arguments.length or call.config.form_bytes
    if wanted > MAX_READ_BYTES:
        raise InvalidRequest(
            f"length {wanted} is too large; ask for at most {MAX_READ_BYTES} and go on with "
            "next_offset"
        )
    session_id = arguments.session_id or session_of(arguments.task_id) or call.sessions.existing("")

    async def work(chosen: Chosen) -> Reply:
        try:
            return await _read(call, arguments, chosen, wanted)
        except WrongState as error:
            raise _expired(call, arguments.task_id, error) from error

    return await call.in_session(session_id, work)


def _expired(call: Call, task_id: str, error: WrongState) -> WrongState:
    if first := error.metadata.get("first_offset", ""):
        return WrongState(
            f"bytes before {first} are not held any more, newer output took their place; read "
            f"from offset={first} on",
            reason=error.reason,
        )
    if error.reason == OUTPUT_GONE:
        result = shown_name(call.config, "task.result")
        return WrongState(
            f"the whole output of task {task_id!r} is not held any more, since its session moved "
            f"or was restarted; {result} still tells its head and tail",
            reason=error.reason,
        )
    return error


async def _read(call: Call, arguments: OutputReadArguments, chosen: Chosen, wanted: int) -> Reply:
    data, now = await part(
        call,
        chosen.session_id,
        arguments.task_id,
        arguments.stream,
        arguments.offset,
        wanted,
    )
    total = now.stdout_bytes if arguments.stream == "stdout" else now.stderr_bytes
    offset, replaced = arguments.offset, 0
    if arguments.encoding == "base64":
        contents = base64.b64encode(data).decode("ascii")
    else:
        room = _ROOM_BYTES if arguments.length else call.config.form_bytes
        data = fitting(_to_character(data, offset + len(data) < total), room)
        contents = data.decode("utf-8", "replace")
        replaced = len(data) - len(data.decode("utf-8", "ignore").encode())
    end = offset + len(data)
    answer = OutputAnswer(
        **session_fields(chosen),
        task_id=arguments.task_id,
        stream=arguments.stream,
        contents=contents,
        encoding=arguments.encoding,
        offset=offset,
        length=len(data),
        next_offset=end,
        total_bytes=total,
        end=now.state == "finished" and end >= total,
        replaced_bytes=replaced,
    )
    state = (
        "the end"
        if answer.end
        else f"go on with offset={end}"
        if end < total
        else "no more so far; the task still runs"
    )
    return Reply(
        value=answer,
        text=paragraphs(
            contents,
            f"[bytes {offset:,} to {end:,} of {total:,} of {arguments.stream}; {state}]",
            f"[{replaced:,} bytes are not UTF-8 and shown as U+FFFD; encoding=base64 has them]"
            if replaced
            else "",
            session_words(chosen),
        ),
    )


async def part(
    call: Call, session_id: str, task_id: str, stream: str, offset: int, length: int
) -> tuple[bytes, pb.StatusResponse]:
    """Read up to ``length`` bytes from ``offset``; (bytes, the task's state before that).

    Raises:
        WrongState: They are not held any more.
    """
    now = await status(call, session_id, task_id)
    printed = {"stdout": now.stdout_bytes, "stderr": now.stderr_bytes}
    length = min(length, printed[stream] - offset)
    if length <= 0:
        return b"", now
    printed[stream] = offset
    got = bytearray()
    while True:
        try:
            return await _collect(call, session_id, task_id, stream, printed, length, got), now
        except InvalidRequest as error:
            if not _closer(printed, error):
                raise


async def _collect(
    call: Call,
    session_id: str,
    task_id: str,
    stream: str,
    offsets: dict[str, int],
    length: int,
    got: bytearray,
) -> bytes:
    request = pb.AttachTaskRequest(
        session_id=session_id,
        task_id=task_id,
        stdout_offset=offsets["stdout"],
        stderr_offset=offsets["stderr"],
    )
    async with closing(call.gateway.tasks(call.principal, ATTACH, request)) as messages:
        async for message in messages:
            if message.WhichOneof("payload") == "log" and message.log.source == stream:
                got += message.log.data
            elif message.WhichOneof("payload") in ("result", "error"):
                break
            if len(got) >= length:
                break
    return bytes(got[:length])


async def end_of_task(call: Call, session_id: str, task_id: str) -> Followed:
    """Wait for a task's end, with head and tail of its output.

    What was printed before is not read again as a whole: the head is, and then what comes from
    about the tail on.
    """
    now = await status(call, session_id, task_id)
    keep = call.config.form_bytes
    heads = {}
    for name, total in (("stdout", now.stdout_bytes), ("stderr", now.stderr_bytes)):
        try:
            heads[name] = (await part(call, session_id, task_id, name, 0, min(keep, total)))[0]
        except WrongState:  # not held any more: the result has head and tail
            heads[name] = b""
    got = Followed.empty(task_id, keep)
    offsets = {}
    for name, total, seen in (
        ("stdout", now.stdout_bytes, got.stdout),
        ("stderr", now.stderr_bytes, got.stderr),
    ):
        seen.add(heads[name])
        offsets[name] = max(total - keep, seen.total) if seen.total else total
        seen.skip(offsets[name] if seen.total else 0)
    while True:
        request = pb.AttachTaskRequest(
            session_id=session_id,
            task_id=task_id,
            stdout_offset=offsets["stdout"],
            stderr_offset=offsets["stderr"],
        )
        try:
            return await follow(call, ATTACH, request, into=got)
        except InvalidRequest as error:
            if not _closer(offsets, error):
                raise


def _closer(offsets: dict[str, int], error: InvalidRequest) -> bool:
    """Move an offset that lies behind what is kept, where the worker says how much that is.

    A run that printed more than its limit was counted to its end, but kept only so far.
    """
    stream, kept = error.metadata.get("stream", ""), error.metadata.get("logged_bytes", "")
    if stream not in offsets or not kept.isdecimal() or offsets[stream] <= int(kept):
        return False
    offsets[stream] = int(kept)
    return True


def _to_character(data: bytes, more: bool) -> bytes:
    """Leave the beginning of a character at the end to the next range."""
    if not more:
        return data
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
            return data[:-back] if length > back and len(data) > back else data
    return data
