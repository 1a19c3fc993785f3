"""Tasks in real sandboxes: output to the last byte, limits, cancels, and readers that come back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import (
    Constraints,
    ErrorEvent,
    OnDisconnect,
    OutputEvent,
    ResultEvent,
    TaskEvent,
    TaskSubmission,
)
from codegen_mcp.settings import Settings
from codegen_mcp.testing.worker import TEST_SETTINGS, state_directory

T = TypeVar("T")
DETACH = OnDisconnect.DETACH


class Worker:
    """One engine and one session for all tests here, held open by one task."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stop: asyncio.Event
        self._holder: asyncio.Task[None]
        self.engine: Engine
        self.session_id = ""

    def __enter__(self) -> Worker:
        self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._close())
        finally:
            self._runner.close()

    def run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(60):
                return await work

        return self._runner.run(bounded())

    async def _open(self) -> None:
        ready, self._stop = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with state_directory() as state:
                settings = Settings(**{**TEST_SETTINGS, "base_workspace": state})
                async with open_engine(settings, keep_sessions=False) as self.engine:
                    view = await self.engine.sessions.create(SessionConfig())
                    self.session_id = view.session_id
                    ready.set()
                    await self._stop.wait()

        self._holder = asyncio.ensure_future(hold())
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait([self._holder, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._holder.done():
            self._holder.result()

    async def _close(self) -> None:
        self._stop.set()
        await self._holder

    async def submit(self, code: str, *, tool_timeout: float = 0, **fields: Any) -> str:
        return await self.engine.tasks.submit(
            TaskSubmission(
                task_id="",
                session_id=self.session_id,
                tool="run.python",
                arguments={"code": code, "timeout_seconds": tool_timeout},
                **fields,
            )
        )

    def events(self, task_id: str, **offsets: int) -> AsyncGenerator[TaskEvent, None]:
        return self.engine.tasks.events(task_id, self.session_id, **offsets)

    async def outcome(self, code: str, **fields: Any) -> tuple[Output, ResultEvent]:
        task_id = await self.submit(code, **fields)
        output = Output()
        async with aclosing(self.events(task_id)) as events:
            async for event in events:
                output.take(event)
        assert isinstance(output.end, ResultEvent), output.end
        return output, output.end

    def running(self, argument: str) -> int:
        """Processes of the session, as the host sees them, that have this argument."""
        sandbox = self.engine.sessions.session(self.session_id).slot.sandbox
        assert sandbox is not None
        found = 0
        for pid in sandbox.processes():
            with suppress(OSError):
                found += argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return found


class Output:
    """What a reader got, checked as it comes."""

    def __init__(self) -> None:
        self.data = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self.order = ""
        self.end: TaskEvent | None = None

    def take(self, event: TaskEvent) -> None:
        assert self.end is None
        if isinstance(event, OutputEvent):
            assert event.offset == len(self.data[event.stream])
            assert 0 < len(event.data) <= 64 * KIB
            self.data[event.stream] += event.data
            if event.stream.value[3] != self.order[-1:]:
                self.order += event.stream.value[3]
        elif isinstance(event, ResultEvent | ErrorEvent):
            self.end = event

    @property
    def stdout(self) -> bytes:
        return bytes(self.data[Stream.STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.data[Stream.STDERR])


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_output_within_the_limit_arrives_to_the_last_byte(worker: Worker) -> None:
    code = (
        "import sys, hashlib, random\n"
        "data = random.Random(1).randbytes(2_000_000)\n"
        "sys.stdout.buffer.write(data)\n"
        "print(hashlib.sha256(data).hexdigest(), file=sys.stderr)"
    )
    output, end = worker.run(worker.outcome(code))
    assert len(output.stdout) == 2_000_000
    assert hashlib.sha256(output.stdout).hexdigest() == output.stderr.decode().strip()
    assert (end.metadata.stdout_bytes, end.metadata.stderr_bytes) == (2_000_000, 65)


def test_fifty_megabytes_end_at_the_limit_with_the_worker_s_memory_flat(worker: Worker) -> None:
    code = "import sys\nfor _ in range(800): sys.stdout.write('x' * 65536)"
    worker.run(worker.outcome("print(1)"))
    before, began = resident(), time.monotonic()
    task_id = worker.run(
        worker.submit(code, constraints=Constraints(output_bytes=20 * MIB), on_disconnect=DETACH)
    )
    status = worker.engine.tasks.status
    worker.run(until(lambda: status(task_id, worker.session_id).state == "finished", 20))
    assert resident() - before < 24 * MIB
    assert time.monotonic() - began < 15

    async def read() -> Output:
        output = Output()
        async for event in worker.events(task_id):
            output.take(event)
        return output

    output = worker.run(read())
    end = output.end
    assert isinstance(end, ResultEvent)
    assert end.metadata.ended_by is EndedBy.OUTPUT
    assert output.stdout == b"x" * 20 * MIB
    assert end.metadata.stdout_bytes > 20 * MIB
    assert end.value is not None
    kept = len(end.value.model_dump()["stdout"])
    assert kept <= 1 * MIB
    assert kept + end.metadata.stdout_omitted == end.metadata.stdout_bytes


def test_endless_printing_ends_by_output_and_nothing_hangs(worker: Worker) -> None:
    limit = Constraints(output_bytes=1 * MIB)
    output, end = worker.run(worker.outcome("while True: print('y' * 100)", constraints=limit))
    assert end.metadata.ended_by is EndedBy.OUTPUT
    assert end.metadata.exit_code == 124
    assert len(output.stdout) == 1 * MIB
    assert "output limit" in end.metadata.remedy
    assert worker.run(worker.outcome("print(2)"))[0].stdout == b"2\n"


def test_streams_stay_apart_and_come_in_order_of_arrival(worker: Worker) -> None:
    code = (
        "import os, time\nfor n in range(10):\n    os.write(1 + n % 2, b'%d' % n); time.sleep(0.03)"
    )
    output, _ = worker.run(worker.outcome(code))
    assert (output.stdout, output.stderr) == (b"02468", b"13579")
    assert output.order == "oeoeoeoeoe"


@pytest.mark.parametrize("text", ["no newline", "a\rb\rc", "\r\n\r\n", "z" * 10_000_000])
def test_what_is_printed_is_preserved_as_it_is(worker: Worker, text: str) -> None:
    code = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"
    if len(text) > 100:
        code = "print('z' * 10_000_000, end='')"

    async def run() -> Output:
        task_id = await worker.engine.tasks.submit(
            TaskSubmission(
                task_id="",
                session_id=worker.session_id,
                tool="run.python",
                arguments={"code": code, "stdin_text": text if len(text) < 100 else ""},
            )
        )
        output = Output()
        async for event in worker.events(task_id):
            output.take(event)
        return output

    assert worker.run(run()).stdout == text.encode()


def test_a_child_that_keeps_stdout_open_does_not_keep_the_call(worker: Worker) -> None:
    code = "import subprocess\nsubprocess.Popen(['sleep', '302'])\nprint('main is done')"
    began = time.monotonic()
    output, end = worker.run(worker.outcome(code))
    assert time.monotonic() - began < 10
    assert output.stdout == b"main is done\n"
    assert end.status is TaskStatus.SUCCESS
    assert worker.running("302") == 0


def test_split_and_broken_characters_arrive_as_the_bytes_they_are(worker: Worker) -> None:
    code = (
        "import os, time\n"
        "os.write(1, b'\\xe2'); time.sleep(0.05); os.write(1, b'\\x82\\xac')\n"
        "os.write(1, b'a' * 8191 + '\\u20ac'.encode()); os.write(1, b'\\xff\\xfe')"
    )
    output, end = worker.run(worker.outcome(code))
    expected = "€".encode() + b"a" * 8191 + "€".encode() + b"\xff\xfe"
    assert output.stdout == expected
    assert end.value is not None
    assert end.value.model_dump()["stdout"] == expected.decode(errors="replace")


def test_a_timeout_keeps_what_was_printed(worker: Worker) -> None:
    code = "import time\nprint('x', flush=True)\ntime.sleep(60)"
    output, end = worker.run(worker.outcome(code, tool_timeout=1))
    assert output.stdout == b"x\n"
    assert end.status is TaskStatus.TIMEOUT
    assert end.metadata.ended_by is EndedBy.TIMEOUT
    assert end.metadata.duration_ms < 2500
    assert end.value is not None
    assert end.value.model_dump()["stdout"] == "x\n"


@pytest.mark.parametrize(
    "code",
    [
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "sum(range(10**12))",
    ],
)
def test_what_ignores_signals_or_sits_in_c_is_ended_too(worker: Worker, code: str) -> None:
    _, end = worker.run(worker.outcome(code, constraints=Constraints(timeout_s=0.5)))
    assert end.metadata.ended_by is EndedBy.TIMEOUT
    assert worker.run(worker.outcome("print(1 + 1)"))[0].stdout == b"2\n"


def test_input_without_stdin_is_an_end_of_file(worker: Worker) -> None:
    output, end = worker.run(worker.outcome("input()"))
    assert b"EOFError" in output.stderr
    assert end.metadata.exit_code == 1


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_timeouts_that_make_no_sense_are_refused(worker: Worker, seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout"):
        worker.run(worker.submit("1", constraints=Constraints(timeout_s=seconds)))


def test_timeout_zero_is_the_session_s_own(worker: Worker) -> None:
    _, end = worker.run(worker.outcome("print(1)", constraints=Constraints(timeout_s=0)))
    assert end.status is TaskStatus.SUCCESS


def test_a_cancel_leaves_no_process_however_it_hid(worker: Worker) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.fork()\n"
        "    os.execvp('sleep', ['sleep', '301'])\n"
        "print('up', flush=True)\n"
        "time.sleep(300)"
    )

    async def run() -> Output:
        task_id = await worker.submit(code)
        output = Output()
        async for event in worker.events(task_id):
            output.take(event)
            if isinstance(event, OutputEvent):
                await until(lambda: worker.running("301") == 2)
                did = await worker.engine.tasks.cancel(task_id, worker.session_id, "enough")
                assert did == (True, "running")
                await until(lambda: worker.running("301") == 0, 2)
        return output

    output = worker.run(run())
    assert output.stdout == b"up\n"
    assert isinstance(output.end, ResultEvent)
    assert output.end.status is TaskStatus.CANCELLED
    assert output.end.metadata.ended_by is EndedBy.CANCELLED
    assert output.end.value is not None
    assert output.end.value.model_dump()["stdout"] == "up\n"


def test_a_reader_that_leaves_stops_its_task_when_that_is_what_was_asked(worker: Worker) -> None:
    async def run() -> None:
        task_id = await worker.submit("import time\nprint(1, flush=True)\ntime.sleep(300)")
        reader = worker.events(task_id)
        assert isinstance(await anext(reader), OutputEvent)
        await reader.aclose()
        view = worker.engine.tasks.status
        await until(lambda: view(task_id, worker.session_id).state == "finished")
        assert view(task_id, worker.session_id).status is TaskStatus.CANCELLED

    worker.run(run())


def test_a_detached_reader_comes_back_again_and_again_for_every_byte_once(worker: Worker) -> None:
    code = (
        "import os, sys\n"
        "for n in range(4000):\n"
        "    os.write(1, b'%06d ' % n)\n"
        "    if n % 7 == 0: os.write(2, b'%06d\\n' % n)"
    )

    async def run() -> tuple[Output, int]:
        task_id = await worker.submit(code, on_disconnect=DETACH)
        output, visits = Output(), 0
        while output.end is None:
            visits += 1
            reader = worker.events(
                task_id, stdout_offset=len(output.stdout), stderr_offset=len(output.stderr)
            )
            async with aclosing(reader):
                output.take(await anext(reader))
        return output, visits

    output, visits = worker.run(run())
    assert visits > 1
    assert output.stdout == b"".join(b"%06d " % n for n in range(4000))
    assert output.stderr == b"".join(b"%06d\n" % n for n in range(0, 4000, 7))


def test_a_reader_that_stalls_holds_the_code_back_and_then_gets_it_all(worker: Worker) -> None:
    code = "import sys\nfor _ in range(192): sys.stdout.write('x' * 65536)"  # 12 MiB

    async def run() -> Output:
        task_id = await worker.submit(code)
        reader = worker.events(task_id)
        output = Output()
        output.take(await anext(reader))
        view = worker.engine.tasks.status
        await until(lambda: view(task_id, worker.session_id).stdout_bytes >= 4 * MIB)
        await asyncio.sleep(0.2)
        assert view(task_id, worker.session_id).state == "running"
        assert view(task_id, worker.session_id).stdout_bytes <= 4 * MIB + 128 * KIB
        async for event in reader:
            output.take(event)
        return output

    output = worker.run(run())
    assert output.stdout == b"x" * 12 * MIB
    assert isinstance(output.end, ResultEvent)
    assert output.end.status is TaskStatus.SUCCESS
