"""Artifacts end to end: a real worker, real HTTP, the SDK, and files that real code left."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2, tools_pb2
from codegen_mcp.client import (
    AsyncSandbox,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    StateException,
)
from codegen_mcp.client.artifacts import Artifacts
from codegen_mcp.client.connection import Connection
from codegen_mcp.testing.wire import RichError, Wire, aio, dial
from codegen_mcp.testing.worker import (
    in_process_worker,
    start_worker_process,
    state_directory,
    worker_process,
)

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
LARGE_BYTES = 1_000_000_000 if SOAK else 64_000_000
FLAT_BYTES = 24 * 1024 * 1024
"""What a worker may grow by while a file of any size passes."""
MIB = 1024 * 1024

pytestmark = pytest.mark.timeout(1800 if SOAK else 120)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(method: str, url: str, data: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def run(wire: Wire, session: str, code: str) -> task_execution_pb2.TaskResult:
    request = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))
    return (await wire.run(session, request))[-1].result


async def upload(wire: Wire, session: str, data: bytes, name: str = "a.bin") -> str:
    """As a client without the SDK does it; returns the id."""
    ticket = await wire.artifacts.GetUploadURL(
        pb.UploadRequest(session_id=session, artifact_name=name, size_bytes=len(data))
    )
    assert (await asyncio.to_thread(ask, "PUT", ticket.upload_url, data))[0] == 200
    answer = await wire.artifacts.RecordArtifact(
        pb.ArtifactMetadata(
            artifact_id=ticket.artifact_id,
            size_bytes=len(data),
            checksum_sha256=hashlib.sha256(data).hexdigest(),
        )
    )
    assert answer.recorded
    assert (await asyncio.to_thread(ask, "GET", answer.download_url)) == (200, data)
    return ticket.artifact_id


async def artifact_get(
    wire: Wire, session: str, artifact_id: str
) -> task_execution_pb2.TaskResponse:
    request = tools_pb2.ToolRequest(
        artifact_get=tools_pb2.ArtifactGetRequest(artifact_id=artifact_id)
    )
    return (await wire.run(session, request))[-1]


async def test_the_sdk_uploads_lists_downloads_and_deletes(shared_worker, tmp_path):
    name = "Bericht – v1.0 (final).csv"
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        kept = sandbox.artifacts
        info = await kept.upload("a,b\n", name, content_type="text/csv", labels={"kind": "report"})
        assert (info.name, info.content_type, info.size) == (name, "text/csv", 4)
        assert info.sha256 == hashlib.sha256(b"a,b\n").hexdigest()
        assert info.labels == {"kind": "report"}
        file = tmp_path / "local.bin"
        file.write_bytes(b"12345")
        second = await kept.upload(file)
        third = await kept.upload(io.BytesIO(b"67"), "memory")
        assert [one.artifact_id for one in await kept.list()][:1] == [third.artifact_id]
        assert {one.name for one in await kept.list()} == {name, "local.bin", "memory"}
        assert await kept.download(second.artifact_id) == b"12345"
        await kept.download_to(info.artifact_id, tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_bytes() == b"a,b\n"
        assert await kept.delete(info.artifact_id)
        assert not await kept.delete(info.artifact_id)
        with pytest.raises(NotFoundException):
            await kept.download(info.artifact_id)
        with pytest.raises(InvalidArgumentException, match="artifact name"):
            await kept.upload(b"x", "a/b")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["local.bin", "out.csv"]


def test_the_sdk_without_async_does_the_same(shared_worker, tmp_path):
    with Sandbox.create(address=shared_worker) as sandbox:
        info = sandbox.artifacts.upload(b"abc", "a.txt")
        assert [one.artifact_id for one in sandbox.artifacts.list()] == [info.artifact_id]
        assert sandbox.artifacts.download(info.artifact_id) == b"abc"
        assert sandbox.artifacts.download_to(info.artifact_id, tmp_path / "a").size == 3
        assert sandbox.artifacts.get_info(info.artifact_id).name == "a.txt"
        assert sandbox.artifacts.delete(info.artifact_id)


async def test_artifacts_outlive_their_session_and_any_session_may_read_them(shared_worker):
    async with dial(shared_worker) as wire:
        first, second = await wire.session(), await wire.session()
        artifact_id = await upload(wire, first, b"abc")
        async with Connection(shared_worker) as connection:
            sandbox = await AsyncSandbox.connect(first, address=shared_worker)
            await sandbox.kill()
            await sandbox.close()
            assert await Artifacts(connection).download(artifact_id) == b"abc"
        answer = (await artifact_get(wire, second, artifact_id)).result.typed_response.artifact_get
        assert (answer.data, answer.size_bytes, answer.artifact_id) == (b"abc", 3, artifact_id)
        assert answer.content_type == "application/octet-stream"
        listed = await wire.artifacts.ListArtifacts(pb.ListArtifactsRequest(session_id=first))
        assert [one.artifact_id for one in listed.artifacts] == [artifact_id]


async def test_a_tool_gives_three_mebibytes_and_a_link_to_more(shared_worker):
    async with dial(shared_worker) as wire:
        session = await wire.session()
        most = await upload(wire, session, b"x" * (3 * MIB))
        more = await upload(wire, session, b"x" * (3 * MIB + 1))
        got = (await artifact_get(wire, session, most)).result.typed_response.artifact_get
        assert len(got.data) == 3 * MIB
        error = (await artifact_get(wire, session, more)).error
        assert error.code == "RESOURCE_EXHAUSTED"
        link = re.search(r"http://\S+", error.message)
        assert link is not None
        assert len((await asyncio.to_thread(ask, "GET", link[0]))[1]) == 3 * MIB + 1
        none = (await artifact_get(wire, session, "art_" + "0" * 32)).error
        assert none.code == "NOT_FOUND"


async def test_what_is_wrong_is_told_by_status(shared_worker):
    async with dial(shared_worker) as wire:
        session = await wire.session()

        async def refused(call) -> RichError:
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            return RichError(caught.value)

        def announce(**changes):
            fields = {"session_id": session, "artifact_name": "a", "size_bytes": 1, **changes}
            return wire.artifacts.GetUploadURL(pb.UploadRequest(**fields))

        assert (await refused(announce(session_id="ses_none"))).code.name == "NOT_FOUND"
        assert (await refused(announce(artifact_name="a/b"))).code.name == "INVALID_ARGUMENT"
        assert (await refused(announce(content_type="text"))).code.name == "INVALID_ARGUMENT"
        assert (await refused(announce(size_bytes=-1))).code.name == "INVALID_ARGUMENT"
        assert (await refused(announce(size_bytes=1 << 50))).code.name == "RESOURCE_EXHAUSTED"
        ticket = await announce()

        def record(**changes):
            fields = {"artifact_id": ticket.artifact_id, "size_bytes": 1, "name": "a"}
            fields["checksum_sha256"] = hashlib.sha256(b"x").hexdigest()
            return wire.artifacts.RecordArtifact(pb.ArtifactMetadata(**{**fields, **changes}))

        assert (await refused(record())).code.name == "FAILED_PRECONDITION"
        assert (await refused(record(checksum_sha256=""))).code.name == "INVALID_ARGUMENT"
        assert (await refused(record(artifact_id="art_x"))).code.name == "NOT_FOUND"
        await asyncio.to_thread(ask, "PUT", ticket.upload_url, b"y")
        assert (await refused(record())).code.name == "DATA_LOSS"
        await asyncio.to_thread(ask, "PUT", ticket.upload_url, b"x")
        assert (await record()).recorded
        assert (await record()).recorded
        assert (await refused(record(name="b"))).code.name == "ALREADY_EXISTS"
        bad_page = wire.artifacts.ListArtifacts(pb.ListArtifactsRequest(page_token="x"))
        assert (await refused(bad_page)).code.name == "INVALID_ARGUMENT"
        none = wire.artifacts.ListArtifacts(pb.ListArtifactsRequest(artifact_id="art_x"))
        assert (await refused(none)).code.name == "NOT_FOUND"


async def test_pages_of_a_listing_join_to_the_whole(shared_worker):
    async with dial(shared_worker) as wire:
        session = await wire.session()
        await run(
            wire,
            session,
            "import os; os.mkdir('artifacts')\n"
            "for n in range(7): open(f'artifacts/{n}', 'w').write(str(n))",
        )
        names: list[str] = []
        token = ""
        while True:
            page = await wire.artifacts.ListArtifacts(
                pb.ListArtifactsRequest(session_id=session, page_size=3, page_token=token)
            )
            assert len(page.artifacts) <= 3
            names += [one.name for one in page.artifacts]
            token = page.next_page_token
            if not token:
                break
        assert sorted(names) == list("0123456")


LEAVE = """
import os
os.makedirs('artifacts/plots')
open('artifacts/result.csv', 'w').write('a,b')
open('artifacts/plots/p.png', 'wb').write(b'png')
os.symlink('/etc/passwd', 'artifacts/passwd')
os.symlink('../secret', 'artifacts/inside')
os.symlink('/proc/self', 'artifacts/proc')
open('secret', 'w').write('s')
os.mkfifo('artifacts/fifo')
with open('artifacts/hole', 'wb') as file: file.truncate(1024)
"""


async def test_files_that_code_leaves_become_artifacts(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker, disk_bytes=128 * MIB) as sandbox:
        quiet = await sandbox.run_python("print(1)")
        assert (quiet.artifacts, quiet.remedy) == ((), "")
        done = await sandbox.run_python(LEAVE)
        infos = {one.artifact_id: one for one in await sandbox.artifacts.list()}
        assert set(done.artifacts) == set(infos)
        assert {one.labels["path"]: one.content_type for one in infos.values()} == {
            "artifacts/hole": "application/octet-stream",
            "artifacts/plots/p.png": "image/png",
            "artifacts/result.csv": "text/csv",
        }
        assert {one.task_id for one in infos.values()} == {done.task_id}
        assert "4 files of artifacts/ were not registered" in done.remedy
        assert done.ok
        again = await sandbox.run_python("print(1)")
        assert (again.artifacts, again.remedy) == ((), "")
        changed = await sandbox.commands.run("echo new > artifacts/result.csv")
        (artifact_id,) = changed.artifacts
        assert await sandbox.artifacts.download(artifact_id) == b"new\n"


async def test_a_failing_and_a_late_program_leave_theirs_too(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        failed = await sandbox.run_python(
            "import os; os.mkdir('artifacts'); open('artifacts/a', 'w').write('a'); 1 / 0"
        )
        assert (failed.exit_code, len(failed.artifacts)) == (1, 1)
        late = await sandbox.run_python(
            "open('artifacts/b', 'w').write('b'); import time; time.sleep(60)", timeout=1
        )
        assert (late.ended_by, len(late.artifacts)) == ("timeout", 1)


async def test_a_hundred_files_at_once_and_the_others_at_the_next_run(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        first = await sandbox.run_python(
            "import os; os.mkdir('artifacts')\n"
            "for n in range(105): open(f'artifacts/{n:03}', 'w').write(str(n))"
        )
        assert len(first.artifacts) == 100
        assert "5 files of artifacts/ were not registered" in first.remedy
        second = await sandbox.run_python("print(1)")
        assert (len(second.artifacts), second.remedy) == (5, "")


async def test_files_that_something_keeps_changing_are_whole_or_left_out(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        await sandbox.run_python("import os; os.mkdir('artifacts')")
        stop = asyncio.Event()

        async def change() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await sandbox.files.write("artifacts/busy", f"{number:04}" * 50_000)

        changing = asyncio.create_task(change())
        results = [await sandbox.run_python("pass") for _ in range(20)]
        stop.set()
        await changing
        ids = [one for result in results for one in result.artifacts]
        assert ids
        for artifact_id in ids:
            data = await sandbox.artifacts.download(artifact_id)
            assert data == data[:4] * 50_000


async def test_the_journal_answers_a_repeated_request_with_the_same_artifacts(shared_worker):
    async with dial(shared_worker) as wire:
        session = await wire.session()
        code = "import os; os.mkdir('artifacts'); open('artifacts/a', 'w').write('a')"
        request = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))
        first = (await wire.run(session, request, task_id="t", sequence=1))[-1].result
        again = (await wire.run(session, request, task_id="t", sequence=1))[-1].result
        assert len(first.artifacts) == 1
        assert list(again.artifacts) == list(first.artifacts)


async def test_without_http_a_link_is_refused_by_the_setting_and_the_rest_works():
    async with in_process_worker(http_port=0, disk_bytes=1 << 30) as worker:
        assert worker.http.artifacts is None
        async with await AsyncSandbox.create(address=worker.address) as sandbox:
            with pytest.raises(StateException, match="HTTP_PORT"):
                await sandbox.artifacts.upload(b"x", "a")
            done = await sandbox.run_python(
                "import os; os.mkdir('artifacts'); open('artifacts/a', 'w').write('abc')"
            )
            async with dial(worker.address) as wire:
                got = await artifact_get(wire, sandbox.sandbox_id, done.artifacts[0])
            assert got.result.typed_response.artifact_get.data == b"abc"
            huge = await sandbox.run_python(
                "import os; os.truncate(os.open('artifacts/huge', os.O_CREAT | 1), 300 << 20)"
            )
            assert (huge.ok, huge.artifacts) == (True, ())
            assert "'artifacts/huge' (314572800 bytes, at most 268435456" in huge.remedy


async def test_links_name_the_public_address_and_metrics_may_share_the_port():
    port = free_port()
    async with in_process_worker(
        http_port=port, metrics_port=port, public_url="https://example.com/worker/"
    ) as worker:
        async with dial(worker.address) as wire:
            session = await wire.session()
            ticket = await wire.artifacts.GetUploadURL(
                pb.UploadRequest(session_id=session, artifact_name="a", size_bytes=1)
            )
        base = "https://example.com/worker"
        assert ticket.upload_url.startswith(f"{base}/artifacts/{ticket.artifact_id}?")
        here = ticket.upload_url.replace(base, f"http://127.0.0.1:{port}")
        assert (await asyncio.to_thread(ask, "PUT", here, b"x"))[0] == 200
        status, page = await asyncio.to_thread(ask, "GET", f"http://127.0.0.1:{port}/metrics")
        assert (status, b"worker_info" in page) == (200, True)


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def test_a_large_file_passes_in_both_directions_with_flat_memory():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        source, target = Path(directory, "in"), Path(directory, "out")
        digest = hashlib.sha256()
        with source.open("wb") as file:
            for _ in range(LARGE_BYTES // 1_000_000):
                piece = os.urandom(1_000_000)
                digest.update(piece)
                file.write(piece)
        async with worker_process() as worker:
            async with await AsyncSandbox.create(address=worker.address) as sandbox:
                await sandbox.artifacts.upload(b"x" * MIB, "warm")
                Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # VmHWM is what it is now
                before = peak_bytes(worker.pid)
                info = await sandbox.artifacts.upload(source)
                assert (info.size, info.sha256) == (LARGE_BYTES, digest.hexdigest())
                await sandbox.artifacts.download_to(info.artifact_id, target)
                assert peak_bytes(worker.pid) - before < FLAT_BYTES
                assert target.stat().st_size == LARGE_BYTES


async def test_a_worker_killed_in_the_middle_of_an_upload_takes_it_again_by_the_same_link():
    data = os.urandom(3_000_000)
    async with state_directory() as state:
        worker = await start_worker_process(state)
        try:
            async with dial(worker.address) as wire:
                session = await wire.session()
                whole = await upload(wire, session, b"kept")
                left = (await run(wire, session, LEAVE)).artifacts
                ticket = await wire.artifacts.GetUploadURL(
                    pb.UploadRequest(session_id=session, artifact_name="a", size_bytes=len(data))
                )
                port, path = re.fullmatch(
                    r"http://127\.0\.0\.1:(\d+)(/.*)", ticket.upload_url
                ).groups()
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data[:2_000_000])
                await writer.drain()
                spool = state / "uploads"
                async with asyncio.timeout(5):
                    while not (spool / f"{ticket.artifact_id}.part").exists():
                        await asyncio.sleep(0.01)
            await worker.kill()
            writer.close()
            worker = await start_worker_process(state)
            assert sorted(one.name for one in spool.iterdir()) == [f"{ticket.artifact_id}.json"]
            async with dial(worker.address) as wire:
                sent = await asyncio.to_thread(ask, "PUT", ticket.upload_url, data)
                assert sent[0] == 200
                answer = await wire.artifacts.RecordArtifact(
                    pb.ArtifactMetadata(
                        artifact_id=ticket.artifact_id,
                        size_bytes=len(data),
                        checksum_sha256=hashlib.sha256(data).hexdigest(),
                    )
                )
                assert (await asyncio.to_thread(ask, "GET", answer.download_url))[1] == data
                listed = await wire.artifacts.ListArtifacts(
                    pb.ListArtifactsRequest(session_id=session)
                )
                ids = {one.artifact_id for one in listed.artifacts}
                assert ids == {whole, ticket.artifact_id, *left}
                # The session was adopted, and what lay in artifacts/ is not new.
                assert list((await run(wire, session, "pass")).artifacts) == []
        finally:
            await worker.stop()


async def test_the_command_line_stores_lists_fetches_and_deletes(shared_worker, tmp_path):
    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = "import sys; from codegen_mcp.cli.main import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", program, "artifacts", *arguments],
            env={**os.environ, "CODEGEN_MCP_ADDRESS": shared_worker},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )

    (tmp_path / "plot.png").write_bytes(b"png")
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        stored = await asyncio.to_thread(cli, "put", sandbox.sandbox_id, "plot.png")
        artifact_id = stored.stdout.strip()
        listed = await asyncio.to_thread(cli, "ls", sandbox.sandbox_id)
        fetched = await asyncio.to_thread(cli, "get", artifact_id, "-o", "copy.png")
        deleted = await asyncio.to_thread(cli, "rm", artifact_id)
        missing = await asyncio.to_thread(cli, "get", artifact_id)
    assert artifact_id in listed.stdout
    assert "image/png" in listed.stdout
    assert fetched.returncode == 0
    assert (tmp_path / "copy.png").read_bytes() == b"png"
    assert deleted.stdout == f"deleted {artifact_id}\n"
    assert (missing.returncode, artifact_id in missing.stderr) == (1, True)
