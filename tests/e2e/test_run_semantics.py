"""What a program in a session can rely on, over the wire of a whole worker."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import aio

from codegen_mcp._proto.codegen.v1 import common_pb2 as common
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sm
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.testing.driven import (
    Driven,
    Ran,
    driven,
    host_user,
    processes_of,
    python,
    until,
)
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import WorkerProcess, worker_process

MIB = 1024 * 1024
SECRET = "b41f8d6e-not-for-sessions"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("kernel_limits"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(kernel_limits: None) -> AsyncIterator[WorkerProcess]:
    os.environ["OPERATORS_TOKEN"] = SECRET
    try:
        async with worker_process(
            max_sessions=60, memory_bytes=128 * MIB, disk_bytes=16 * MIB, pool_size=2
        ) as started:
            del os.environ["OPERATORS_TOKEN"]
            yield started
            assert "Traceback" not in started.log, started.log
            assert SECRET not in started.log
    finally:
        os.environ.pop("OPERATORS_TOKEN", None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(worker: WorkerProcess) -> AsyncIterator[Wire]:
    async with dial(worker.address) as dialled:
        yield dialled


@pytest_asyncio.fixture(loop_scope="module")
async def session(wire: Wire) -> AsyncIterator[Driven]:
    async with driven(wire) as made:
        yield made


async def test_a_variable_of_one_call_is_gone_in_the_next_and_the_session_s_is_back(wire: Wire):
    config = sm.SessionConfig(env_vars={"KEPT": "session's"})
    session = Driven(wire, await wire.session(config=config))
    try:
        show = "import os; print(os.environ.get('KEPT'), os.environ.get('ONCE'))"
        own = {"KEPT": "call's", "ONCE": "1"}
        first = await session.task(python(show, env_vars=own))
        by_context = await session.python(show, context=te.TaskContext(env_vars=own))
        later = await session.python(show)
    finally:
        await session.destroy()
    assert first.stdout == by_context.stdout == b"call's 1\n"
    assert later.stdout == b"session's None\n"


async def test_every_call_is_a_fresh_process_in_the_workspace(session: Driven):
    here = "import os; print(os.getcwd(), os.environ['HOME'])"
    first = await session.python(here)
    moved = await session.python("import os; os.mkdir('below'); os.chdir('below'); kept = 1")
    after = await session.python("import os; print(os.getcwd(), 'kept' in globals())")
    removed = await session.python(
        "import os, shutil; os.chdir('below'); shutil.rmtree('/workspace/below')"
    )
    emptied = await session.python(
        "import shutil\ntry: shutil.rmtree('/workspace')\nexcept OSError as e: print(e.errno)"
    )
    again = await session.python(here)
    assert first.stdout == again.stdout == b"/workspace /workspace\n"
    assert moved.ok
    assert after.stdout == b"/workspace False\n"
    assert removed.ok, removed
    assert emptied.ok, emptied


async def test_a_file_can_use_a_pool_of_processes(session: Driven):
    code = (
        b"import multiprocessing\ndef square(n): return n * n\n"
        b"if __name__ == '__main__':\n"
        b"    for how in ('fork', 'spawn'):\n"
        b"        with multiprocessing.get_context(how).Pool(2) as pool:\n"
        b"            print(how, pool.map(square, range(4)))\n"
    )
    await session.write("pool.py", code)
    ran = await session.task(
        tools.ToolRequest(run_python=tools.RunPythonRequest(file="pool.py", args=["x"]))
    )
    assert ran.stdout == b"fork [0, 1, 4, 9]\nspawn [0, 1, 4, 9]\n", ran


async def test_fifty_megabytes_are_streamed_and_counted_and_the_worker_stays_small(
    worker: WorkerProcess, session: Driven
):
    def resident() -> int:
        pages = Path(f"/proc/{worker.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    code = "import os\nfor n in range(50): os.write(1, bytes([65 + n % 26]) * (1 << 20))"
    await session.python(code)
    before, most, size = resident(), 0, 0
    async for message in session.wire.tasks.ExecuteTask(session.request(python(code))):
        size += len(message.log.data)
        most = max(most, resident())
    facts, text = message.result.metadata, message.result.typed_response.run_python.stdout
    assert size == facts.stdout_bytes == 50 * MIB
    assert facts.stdout_omitted_bytes == 50 * MIB - MIB
    assert text == "A" * (MIB // 2) + "X" * (MIB // 2)
    assert most - before < 16 * MIB  # what readers may lag behind, in memory


async def test_two_megabytes_are_exact_to_the_last_byte(session: Driven):
    code = "import hashlib, sys\nfor n in range(131072): sys.stdout.write('%015x\\n' % n)"
    ran = await session.python(code)
    expected = "".join(f"{n:015x}\n" for n in range(131072)).encode()
    assert hashlib.sha256(ran.stdout).digest() == hashlib.sha256(expected).digest()
    assert ran.facts.stdout_bytes == 2 * MIB


async def test_both_streams_are_whole_and_apart_and_come_in_the_order_of_flushes(session: Driven):
    code = (
        "import sys, time\nfor n in range(20):\n"
        "    print('out', n, flush=True); time.sleep(.02)\n"
        "    print('err', n, file=sys.stderr, flush=True); time.sleep(.02)\n"
    )
    order: list[str] = []
    async for message in session.wire.tasks.ExecuteTask(session.request(python(code))):
        if message.HasField("log"):
            order += message.log.data.decode().splitlines()
    answer = message.result.typed_response.run_python
    assert answer.stdout == "".join(f"out {n}\n" for n in range(20))
    assert answer.stderr == "".join(f"err {n}\n" for n in range(20))
    assert order == [f"{name} {n}" for n in range(20) for name in ("out", "err")]


@pytest.mark.parametrize(
    "expression",
    [
        "b'no end of line'",
        "b'10%\\r50%\\r100%\\r'",
        "b'a\\r\\nb\\n\\rc\\0d'",
        "b'x' * (10 << 20)",
        "('\\u2603' * 70_000).encode()",
        "bytes(range(256)) * 3",
    ],
)
async def test_output_of_any_form_is_what_was_written(session: Driven, expression: str):
    ran = await session.python(f"import sys; sys.stdout.buffer.write({expression})")
    expected: bytes = eval(expression)
    assert ran.stdout == expected
    assert ran.facts.stdout_bytes == len(expected)
    text = expected.decode(errors="replace")
    if len(expected) <= MIB:
        assert ran.answer.stdout == text
    else:
        assert ran.answer.stdout == text[: MIB // 2] + text[-MIB // 2 :]


async def test_a_character_written_in_two_pieces_is_one_and_a_bad_byte_is_marked(session: Driven):
    code = (
        "import os, time\nos.write(1, b'\\xe2'); time.sleep(.1); os.write(1, b'\\x98'); "
        "time.sleep(.1); os.write(1, b'\\x83|\\xff|')\n"
        "os.write(1, b'x' * 65535 + '\\u2603'.encode() + b'\\n')"
    )
    texts: list[str] = []
    async for message in session.wire.tasks.ExecuteTask(session.request(python(code))):
        texts.append(message.log.message)
    expected = "☃|\ufffd|" + "x" * 65535 + "☃\n"
    assert "".join(texts) == expected
    assert message.result.typed_response.run_python.stdout == expected


async def test_a_lone_surrogate_is_the_program_s_error_and_nobody_else_s(session: Driven):
    ran = await session.python("print('before'); print('\\ud800')")
    after = await session.python("print(1)")
    assert (ran.ended_by, ran.facts.exit_code) == ("exit", 1)
    assert b"UnicodeEncodeError" in ran.stderr
    assert ran.stdout == b"before\n"
    assert after.ok


async def test_a_child_that_holds_the_output_open_does_not_hold_the_call(
    worker: WorkerProcess, session: Driven
):
    uid = host_user(worker.state, session.id)
    before = len(processes_of({uid}))
    ran = await session.shell("sleep 30 & echo started")
    by_python = await session.python(
        "import subprocess; subprocess.Popen(['sleep', '30']); print('started')"
    )
    for each in (ran, by_python):
        assert each.stdout == b"started\n"
        assert each.ok
        assert each.seconds < 2.0
    assert await until(lambda: len(processes_of({uid})) == before, 2.0)


@pytest.mark.parametrize(
    ("code", "exit_code", "signal", "stdout", "stderr"),
    [
        ("import sys; sys.exit(3)", 3, 0, b"", b""),
        ("import sys; sys.exit('why')", 1, 0, b"", b"why\n"),
        ("raise SystemExit", 0, 0, b"", b""),
        ("import os\nprint('a')\nos.write(1, b'b')\nos._exit(0)", 0, 0, b"a\nb", b""),
        ("import os\nos._exit(256 + 7)", 7, 0, b"", b""),
        (
            "import os, signal\nos.write(1, b'kept')\nos.kill(os.getpid(), 11)",
            139,
            11,
            b"kept",
            b"",
        ),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", 143, 15, b"", b""),
        ("import os\nos.abort()", 134, 6, b"", b"Fatal Python error: Aborted"),
    ],
)
async def test_how_a_program_ends_is_told_as_it_was(
    session: Driven, code: str, exit_code: int, signal: int, stdout: bytes, stderr: bytes
):
    ran = await session.python(code)
    after = await session.python("print(1)")
    assert (ran.facts.exit_code, ran.facts.signal) == (exit_code, signal), ran
    assert ran.ended_by == ("signal" if signal else "exit")
    assert ran.stdout == stdout
    assert signal == 6 or ran.stderr == stderr
    assert after.stdout == b"1\n"


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("false || true", 0),
        ("exit 127", 127),
        ("no-such-command", 127),
        ("kill -9 $$", 137),
        ("/workspace", 126),
        ("true", 0),
        (":", 0),
    ],
)
async def test_a_shell_answers_with_its_own_exit_code(
    session: Driven, command: str, exit_code: int
):
    ran = await session.shell(command)
    assert ran.json["exit_code"] == ran.facts.exit_code == exit_code
    assert ran.ended_by == ("signal" if "kill" in command else "exit")


async def test_a_timeout_is_told_at_once_with_what_was_printed_and_the_session_goes_on(
    session: Driven,
):
    ran = await session.python("import time; print('x', flush=True); time.sleep(60)", timeout_s=1)
    after = await session.python("print(1 + 1)")
    assert ran.seconds < 1.5
    assert (ran.ended_by, ran.facts.exit_code, ran.answer.stdout) == ("timeout", 124, "x\n")
    assert ran.answer.timed_out
    assert after.stdout == b"2\n"


async def test_reading_input_that_nobody_gave_ends_at_once(session: Driven):
    ran = await session.python("input('? ')")
    given = await session.task(python("print(input())", stdin=b"eingabe\n"))
    assert ran.seconds < 2.0
    assert b"EOFError" in ran.stderr
    assert given.stdout == b"eingabe\n"


@pytest.mark.parametrize("where", ["constraints", "run.python"])
async def test_timeouts_are_checked_and_zero_is_the_session_s(session: Driven, where: str):
    def ask(seconds: int) -> te.TaskRequest:
        if where == "constraints":
            return session.request(python("print(1)"), timeout_s=seconds)
        return session.request(python("print(1)", timeout_seconds=seconds))

    for seconds in (-1, -(2**31), 3601, 2**31 - 1):
        assert await refusal(session.wire, ask(seconds)) == "INVALID_ARGUMENT"
    messages = [message async for message in session.wire.tasks.ExecuteTask(ask(0))]
    assert messages[-1].result.status == te.TaskResult.STATUS_SUCCESS


async def test_a_caller_s_deadline_ends_the_call_and_its_run(session: Driven):
    started = time.monotonic()
    request = session.request(python("import time; time.sleep(60)"), task_id="slow")
    with pytest.raises(aio.AioRpcError) as caught:
        async for _ in session.wire.tasks.ExecuteTask(request, timeout=1):
            pass
    assert caught.value.code().name == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 2.0
    assert await finished(session, "slow") == common.ENDED_BY_CANCELLED


async def test_cancelling_ends_grandchildren_daemons_and_whatever_there_is(
    worker: WorkerProcess, session: Driven
):
    uid = host_user(worker.state, session.id)
    before = len(processes_of({uid}))
    code = (
        "import os, subprocess, time\nsubprocess.Popen(['setsid', 'sleep', '600'])\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork():\n            os._exit(0)\n        time.sleep(600)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    stream = aiter(session.wire.tasks.ExecuteTask(session.request(python(code), task_id="t")))
    await anext(stream)
    assert await until(lambda: len(processes_of({uid})) >= before + 4)
    request = te.CancelRequest(session_id=session.id, task_id="t")
    answer = await session.wire.tasks.CancelTask(request)
    assert answer.cancelled
    *_, last = [message async for message in stream]
    assert last.result.status == te.TaskResult.STATUS_CANCELLED
    assert await until(lambda: len(processes_of({uid})) == before, 2.0)


async def test_cancelling_has_one_answer_whenever_it_comes(session: Driven):
    async def cancel(task_id: str) -> tuple[bool, str]:
        request = te.CancelRequest(session_id=session.id, task_id=task_id)
        answer = await session.wire.tasks.CancelTask(request)
        return answer.cancelled, answer.state

    first = aiter(session.wire.tasks.ExecuteTask(session.request(python(SLEEP), task_id="1")))
    await anext(first)
    second = asyncio.ensure_future(session.python("open('ran', 'w')", task_id="2"))
    ask = te.ListTasksRequest(session_id=session.id)
    assert await until(lambda: tasks_are(session.wire, ask, 2))
    assert (await cancel("2"))[0]
    waited = await second
    assert (await cancel("1"))[0]
    *_, last = [message async for message in first]
    assert [await cancel("1"), await cancel("1")] == [(False, "finished")] * 2
    assert [await cancel("2"), await cancel("2")] == [(False, "finished")] * 2
    with pytest.raises(aio.AioRpcError) as caught:
        await cancel("never")
    assert caught.value.code().name == "NOT_FOUND"
    assert last.result.metadata.ended_by == common.ENDED_BY_CANCELLED
    assert waited.ended_by == "cancelled"
    assert not (await session.shell("test -e ran")).ok  # it was cancelled before it began


async def test_a_dropped_connection_cancels_a_run_that_was_not_detached(
    worker: WorkerProcess, session: Driven
):
    uid = host_user(worker.state, session.id)
    before = len(processes_of({uid}))
    async with cable(worker.address) as line, dial(line.address) as far:
        stream = aiter(far.tasks.ExecuteTask(session.request(python(SLEEP), task_id="t")))
        await anext(stream)
        line.cut()
        with pytest.raises(aio.AioRpcError) as caught:
            await anext(stream)
    assert caught.value.code().name == "UNAVAILABLE"
    assert await finished(session, "t") == common.ENDED_BY_CANCELLED
    assert await until(lambda: len(processes_of({uid})) == before, 2.0)


async def test_a_detached_run_is_followed_again_after_a_dropped_connection(
    worker: WorkerProcess, session: Driven
):
    code = (
        "import sys, time\nfor n in range(4000):\n    print('out', n, flush=True)\n"
        "    print('err', n, file=sys.stderr, flush=True)\n    if n % 40 == 0: time.sleep(.01)"
    )
    seen = {"stdout": b"", "stderr": b""}
    request = session.request(
        python(code), task_id="t", on_disconnect=te.ON_DISCONNECT_DETACH, sequence=1
    )
    drops = 0
    for goal in (2_000, 9_000, 20_000, 10**9):
        async with cable(worker.address) as line, dial(line.address) as far:
            if drops == 0:
                stream = far.tasks.ExecuteTask(request)
            else:
                stream = far.tasks.AttachTask(
                    te.AttachTaskRequest(
                        session_id=session.id,
                        task_id="t",
                        stdout_offset=len(seen["stdout"]),
                        stderr_offset=len(seen["stderr"]),
                    )
                )
            with suppress(aio.AioRpcError):
                async for message in stream:
                    if message.HasField("log"):
                        assert message.log.offset == len(seen[message.log.source])
                        seen[message.log.source] += message.log.data
                    if len(seen["stdout"]) > goal:
                        drops += 1
                        line.cut()
                        goal = 10**9
    assert drops == 3
    assert message.result.status == te.TaskResult.STATUS_SUCCESS
    for name, prefix in (("stdout", "out"), ("stderr", "err")):
        assert seen[name].decode() == "".join(f"{prefix} {n}\n" for n in range(4000))


async def test_two_runs_of_one_session_never_overlap(session: Driven):
    code = (
        "import os, time\nos.mkdir('alone')\nprint('begun', flush=True)\n"
        "time.sleep(.05)\nos.rmdir('alone')"
    )
    runs = await asyncio.gather(*(session.python(code) for _ in range(6)))
    assert all(ran.ok for ran in runs), runs


async def test_fifty_sessions_at_once_each_have_their_own_files_and_ports(wire: Wire):
    code = (
        "import socket, sys, time\nopen('same', 'w').write(sys.argv[1])\n"
        "server = socket.create_server(('127.0.0.1', 8080))\n"
        "print('up', flush=True)\nlimit = time.monotonic() + 3\nclient = "
        "socket.create_connection(('127.0.0.1', 8080))\nclient.sendall(sys.argv[1].encode())\n"
        "other, _ = server.accept()\nprint(other.recv(100).decode(), open('same').read())"
    )

    async def one(number: int) -> Ran:
        async with driven(wire) as session:
            ran = await session.task(python(code, args=[f"number-{number}"]))
            read = await session.read("same")
            assert read.result.typed_response.fs_read.data == f"number-{number}".encode()
            return ran

    runs = await asyncio.gather(*(one(number) for number in range(50)))
    for number, ran in enumerate(runs):
        assert ran.stdout.decode() == f"up\nnumber-{number} number-{number}\n", ran


async def test_a_session_sees_nothing_of_the_worker_its_host_or_its_neighbours(
    worker: WorkerProcess, wire: Wire, session: Driven
):
    async with driven(wire) as other:
        await other.write("private", b"of the neighbour")
        ran = await session.python(PRY % {"token": SECRET, "other": other.id})
    assert ran.ok, ran
    assert ran.stdout == b"", ran.stdout.decode()
    assert SECRET.encode() not in ran.stderr


async def test_a_directory_of_a_thousand_levels_is_listed_or_refused_and_destroyed(wire: Wire):
    deep = (
        "import os\nfor _ in range(1000):\n    os.mkdir('d'); os.chdir('d')\n"
        "open('bottom', 'w').write('x')"
    )
    async with driven(wire) as session:
        made = await session.python(deep)
        listed = await session.task(tools.ToolRequest(fs_list=tools.FsListRequest(recursive=True)))
        after = await session.python("print(1)")
    assert made.ok, made
    assert listed.error.code or listed.result.typed_response.fs_list.total_count == 1001, listed
    assert after.ok
    with pytest.raises(aio.AioRpcError) as caught:
        await wire.sessions.GetSessionStatus(sm.SessionStatusRequest(session_id=session.id))
    assert caught.value.code().name == "NOT_FOUND"


SLEEP = "print('up', flush=True)\nimport time; time.sleep(600)"
PRY = """
import ctypes, os, socket, subprocess, sys

def tell(what, value):
    print(what, repr(value)[:200])

def allowed(what, call, *arguments):
    try:
        tell(what, call(*arguments))
    except (OSError, PermissionError):
        pass

for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        if %(token)r.encode() in open(f"/proc/{name}/environ", "rb").read():
            tell("secret in", name)
    except OSError:
        pass
if %(token)r in str(os.environ):
    tell("own environment", "secret")
allowed("/proc/kcore", open, "/proc/kcore", "rb")
allowed("/etc/shadow", open, "/etc/shadow")
allowed("docker", socket.socket(socket.AF_UNIX).connect, "/var/run/docker.sock")
for address in ("169.254.169.254", "1.1.1.1", "10.0.0.1"):
    link = socket.socket(); link.settimeout(1)
    allowed(address, link.connect, (address, 80))
allowed("mknod", os.mknod, "/workspace/device", 0o60600, os.makedev(7, 0))
allowed("setuid", os.setuid, 0)
allowed("chroot", os.chroot, "/workspace")
allowed("template", open, sys.base_prefix + "/lib/mine", "w")
allowed("guest", open, "/run/codegen/guest/main.py", "a")
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in {
    "unshare": (0x10000000,),
    "mount": (b"none", b"/tmp", b"tmpfs", 0, None),
    "ptrace": (16, 1, None, None),
    "syscall": (321, 0, None, 0),  # bpf
    "kill": (1, 9),
}.items():
    if getattr(libc, name)(*arguments) != -1 and name != "kill":
        tell(name, "allowed")
found = subprocess.run(["find", "/", "-xdev", "-name", "*%(other)s*"], capture_output=True)
if found.stdout:
    tell("neighbour", found.stdout)
"""


async def refusal(wire: Wire, request: te.TaskRequest) -> str:
    """The status with which a task is refused, by call or by its last message."""
    try:
        messages = [message async for message in wire.tasks.ExecuteTask(request)]
    except aio.AioRpcError as error:
        return error.code().name
    return messages[-1].error.code


async def finished(session: Driven, task_id: str) -> int:
    """Wait for a task's end and return why it ended."""
    ask = te.StatusRequest(session_id=session.id, task_id=task_id)

    async def ended() -> int:
        status = await session.wire.tasks.GetTaskStatus(ask)
        return status.ended_by if status.state == "finished" else 0

    return await until(ended)


async def tasks_are(wire: Wire, ask: te.ListTasksRequest, count: int) -> bool:
    return len((await wire.tasks.ListTasks(ask)).tasks) == count


class Line:
    """A TCP connection to the worker that can be cut."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


@asynccontextmanager
async def cable(address: str) -> AsyncIterator[Line]:
    host, _, port = address.rpartition(":")

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        line.writers += [writer, far_writer]
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.transport.abort()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    line = Line(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield line
    finally:
        line.cut()
        server.close()
        await server.wait_closed()
