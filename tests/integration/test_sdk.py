"""The SDK against a real worker: E2B's names, typed results, errors by reason."""

import asyncio
import io

import pytest

from codegen_mcp.client import (
    AsyncSandbox,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    NotImplementedException,
    RateLimitException,
    Sandbox,
    SandboxNotFoundException,
    StateException,
    UnavailableException,
)
from codegen_mcp.client.errors import BY_STATUS, make_error
from codegen_mcp.testing.worker import in_process_worker


async def test_a_program_prints_live_and_its_end_is_told(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        live: list[str] = []
        result = await sandbox.run_python("print('a')\nprint('b')", on_stdout=live.append)
    assert "".join(live) == "a\nb\n"
    assert (result.stdout, result.stderr, result.exit_code) == ("a\nb\n", "", 0)
    assert result.ended_by == "exit"
    assert result.ok


async def test_a_failing_program_is_a_result_and_says_why(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        failed = await sandbox.run_python("raise ValueError('no')")
        late = await sandbox.run_python(
            "import time; print('x', flush=True); time.sleep(60)", timeout=1
        )
    assert failed.exit_code == 1
    assert "ValueError: no" in failed.stderr
    assert not failed.ok
    assert (late.ended_by, late.stdout, late.exit_code) == ("timeout", "x\n", 124)
    assert late.remedy


async def test_arguments_environment_and_input_reach_the_program(shared_worker):
    code = "import os, sys; print(sys.argv[1:], os.environ['A'], os.environ['B'], sys.stdin.read())"
    async with await AsyncSandbox.create(address=shared_worker, envs={"A": "1"}) as sandbox:
        result = await sandbox.run_python(code, args=["x", "y"], envs={"B": "2"}, stdin="hello")
    assert result.stdout == "['x', 'y'] 1 2 hello\n"


async def test_commands_give_exit_codes_and_raise_where_asked(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        good = await sandbox.commands.run("cat; echo $V", stdin=b"in\n", envs={"V": "7"})
        with pytest.raises(CommandExitException) as caught:
            await sandbox.commands.run("echo out; echo err >&2; exit 3")
        quiet = await sandbox.commands.run("exit 4", check=False)
    assert good.stdout == "in\n7\n"
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "err\n")
    assert str(caught.value) == "command ended with exit code 3: err"
    assert good.task_id.startswith("task_")
    assert caught.value.exit_code == 3
    assert quiet.exit_code == 4


async def test_files_come_back_as_they_went_whatever_their_size(shared_worker):
    big = bytes(range(256)) * 4096 * 5
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        files = sandbox.files
        small = await files.write("dir/a.txt", "höi", mode=0o600)
        large = await files.write("big.bin", io.BytesIO(big))
        assert await files.read("dir/a.txt") == "höi"
        assert await files.read("big.bin", "bytes") == big
        pieces = [piece async for piece in await files.read("big.bin", "stream")]
        listed = await files.list("", depth=None)
        inside = await files.list("dir")
        info = await files.get_info("dir/a.txt")
        moved = await files.rename("dir/a.txt", "b.txt")
        gone = await files.exists("dir/a.txt")
        await files.remove("dir")
        names = [entry.path for entry in await files.list()]
    assert b"".join(pieces) == big
    assert (small.size, large.size) == (4, len(big))
    assert sorted(entry.path for entry in listed) == ["big.bin", "dir", "dir/a.txt"]
    assert [entry.path for entry in inside] == ["dir/a.txt"]
    assert (info.type, info.size, info.mode & 0o777) == ("file", 4, 0o600)
    assert (moved.path, gone) == ("b.txt", False)
    assert sorted(names) == ["b.txt", "big.bin"]


async def test_errors_come_back_as_classes_by_reason(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        with pytest.raises(NotFoundException):
            await sandbox.files.read("nope")
        with pytest.raises(InvalidArgumentException) as escape:
            await sandbox.files.write("../x", "y")
        with pytest.raises(NotImplementedException):
            await sandbox.run_code("1")
        again = await AsyncSandbox.connect(sandbox.sandbox_id, address=shared_worker)
        assert await again.is_running()
        await again.close()
        assert await sandbox.kill()
        assert not await sandbox.kill()
        assert not await sandbox.is_running()
        with pytest.raises(SandboxNotFoundException):
            await AsyncSandbox.connect(sandbox.sandbox_id, address=shared_worker)
    assert escape.value.reason == "PATH_ESCAPE"


async def test_a_full_worker_says_when_to_try_again():
    async with in_process_worker(max_sessions=1, pool_size=0) as worker:
        async with await AsyncSandbox.create(address=worker.address):
            with pytest.raises(RateLimitException) as full:
                await AsyncSandbox.create(address=worker.address)
    assert full.value.retry_after_s is not None


async def test_a_worker_that_is_not_there_is_unavailable():
    with pytest.raises(UnavailableException, match=r"no answer from a worker at '127.0.0.1:1'"):
        await AsyncSandbox.create(address="127.0.0.1:1")


async def test_a_closed_sandbox_says_so(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        pass
    with pytest.raises(StateException, match="is closed") as caught:
        await sandbox.run_python("print(1)")
    assert caught.value.reason == "CLOSED"


async def test_sessions_are_listed_with_state_and_their_idle_time_can_be_set(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker, metadata={"k": "v"}) as sandbox:
        await sandbox.set_timeout(600)
        listed = await AsyncSandbox.list(address=shared_worker)
        info = await sandbox.get_info()
    assert sandbox.sandbox_id in [one.sandbox_id for one in listed]
    assert info.metadata["k"] == "v"
    assert info.state == "ready"


async def test_the_synchronous_sandbox_does_the_same(shared_worker):
    def use(address: str) -> tuple[str, bytes, list[str], str]:
        with Sandbox.create(address=address) as sandbox:
            sandbox.files.write("n.txt", "5")
            result = sandbox.run_python("print(int(open('n.txt').read()) ** 2)")
            stream = b"".join(sandbox.files.read("n.txt", "stream"))
            names = [entry.name for entry in sandbox.files.list()]
            return result.stdout, stream, names, sandbox.commands.run("echo hi").stdout

    assert await asyncio.to_thread(use, shared_worker) == ("25\n", b"5", ["n.txt"], "hi\n")


def test_every_status_has_a_class_and_unknown_reasons_fall_back_to_it():
    for status, kind in BY_STATUS.items():
        assert type(make_error(status, "x", reason="NEVER_HEARD_OF")) is kind


async def test_the_progress_of_an_install_is_told_and_a_bad_name_raises(shared_worker):
    told: list[str] = []
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        with pytest.raises(InvalidArgumentException):
            await sandbox.install("--index-url=x", on_progress=told.append)
