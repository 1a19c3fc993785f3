"""How runs are bounded, cancelled, followed and kept apart, over the wire of a whole worker."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

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
