"""What a program in a session can rely on, over the wire of a whole worker."""

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sm
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.testing.driven import (
    Driven,
    driven,
    host_user,
    processes_of,
    python,
    until,
)
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import WorkerProcess, worker_process

MIB = 1024 * 1024

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("kernel_limits"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(kernel_limits: None) -> AsyncIterator[WorkerProcess]:
    async with worker_process(
        max_sessions=4, memory_bytes=128 * MIB, disk_bytes=16 * MIB
    ) as started:
        yield started
        assert "Traceback" not in started.log, started.log


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
        "    print('out', n, flush=True); time.sleep(.05)\n"
        "    print('err', n, file=sys.stderr, flush=True); time.sleep(.05)\n"
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
