"""What callers can rely on of a session's files and packages, over the wire of a whole worker."""

import asyncio
import base64
import hashlib
import json
import random
import unicodedata
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from grpc import aio

from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.testing.driven import Driven, Ran, call, driven
from codegen_mcp.testing.small_index import small_index, small_wheel
from codegen_mcp.testing.wire import RichError, Wire, dial
from codegen_mcp.testing.worker import WorkerProcess, worker_process

MIB = 1024 * 1024

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("kernel_limits"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(kernel_limits: None) -> AsyncIterator[WorkerProcess]:
    wheels = {
        "plain-1.0-py3-none-any.whl": small_wheel("plain"),
        "wants_old-1.0-py3-none-any.whl": small_wheel("wants_old", requires=("plain<1",)),
        "wants_new-1.0-py3-none-any.whl": small_wheel("wants_new", requires=("plain>=1",)),
    }
    with small_index(wheels) as index:
        async with worker_process(
            max_sessions=8,
            memory_bytes=128 * MIB,
            disk_bytes=32 * MIB,
            max_disk_bytes=512 * MIB,
            package_index_urls=index,
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


async def listed(session: Driven, path: str = "", **fields: object) -> list[tools.FileInfo]:
    request = tools.FsListRequest(path=path, **fields)
    ran = await session.task(tools.ToolRequest(fs_list=request))
    assert not ran.error.code, ran
    return list(ran.result.typed_response.fs_list.files)


@pytest.mark.parametrize(
    "name",
    [
        "🐍.txt",
        "two\nlines",
        " space before and after ",
        "-rf",
        "a\\b'c\"d$e`f",
        "x" * 255,
        "ä" * 127,
        unicodedata.normalize("NFC", "é"),
        unicodedata.normalize("NFD", "é"),
    ],
    ids=ascii,
)
async def test_any_name_goes_round_through_write_list_read_and_the_program(
    session: Driven, name: str
):
    data = name.encode() + b"\0content"
    written = await session.write(f"d/{name}", data)
    ran = await session.python("import os; print(ascii(os.listdir('d')))")
    assert written.result.typed_response.fs_write.path == f"d/{name}", written
    assert [file.name for file in await listed(session, "d")] == [name]
    assert (await session.read(f"d/{name}")).result.typed_response.fs_read.data == data
    assert await session.sha256(f"d/{name}") == hashlib.sha256(data).hexdigest()
    assert ran.stdout.decode() == f"{[name]!a}\n"


async def test_the_same_letter_composed_and_decomposed_is_two_files(session: Driven):
    for form in ("NFC", "NFD"):
        await session.write(unicodedata.normalize(form, "é"), form.encode())
    assert len(await listed(session)) == 2
    for form in ("NFC", "NFD"):
        read = await session.read(unicodedata.normalize(form, "é"))
        assert read.result.typed_response.fs_read.data == form.encode()


async def test_a_name_that_is_no_utf_8_is_listed_with_its_bytes_and_harms_nothing(session: Driven):
    await session.python("open(b'bad\\xff', 'w').write('x'); open('good', 'w').write('y')")
    found = {file.path_bytes or file.path.encode(): file for file in await listed(session)}
    assert set(found) == {b"bad\xff", b"good"}
    found[b"bad\xff"].path.encode()  # can be sent on by whoever reads it
    assert (await session.read("good")).result.typed_response.fs_read.contents == "y"


async def test_binary_content_is_marked_and_exact(session: Driven):
    cases = {
        "all": (bytes(range(256)) * 5, "base64"),
        "png": (b"\x89PNG\r\n\x1a\n\0\0", "base64"),
        "text": ("grün ☃\r\n".encode(), "utf-8"),
        "empty": (b"", "utf-8"),
        "torn": ("☃".encode()[:2], "base64"),
    }
    for name, (data, encoding) in cases.items():
        await session.write(name, data)
        answer = (await session.read(name)).result.typed_response.fs_read
        assert (answer.encoding, answer.size_bytes, answer.data) == (encoding, len(data), data)
        assert answer.sha256 == hashlib.sha256(data).hexdigest()
        if encoding == "utf-8":
            assert answer.contents.encode() == data
        else:
            assert base64.b64decode(answer.contents) == data


OUT = ["../x", "/etc/passwd", "a/../../x", "a\0b", "p/" * 2500, "link/passwd", "out"]
PATH_TOOLS = [
    *("fs.read", "fs.write", "fs.list", "fs.delete", "fs.stat", "fs.move"),
    *("run.python", "run.shell", "upload", "download"),
]


@pytest.mark.parametrize("tool", PATH_TOOLS)
async def test_no_path_leads_out_of_the_workspace(session: Driven, tool: str):
    await session.shell("mkdir a; ln -s /etc link; ln -s /etc/passwd out")
    for path in OUT:
        if tool in ("fs.delete", "fs.stat", "fs.move") and path == "out":
            continue  # they name the link itself
        code = await status_of(session, tool, path)
        assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), (path, code)
    assert (await session.shell("test -L out")).ok


@pytest.mark.parametrize("path", ["", "."])
async def test_the_workspace_itself_is_no_file(session: Driven, path: str):
    for tool in ("fs.read", "fs.write", "fs.delete", "upload", "download"):
        assert await status_of(session, tool, path) == "INVALID_ARGUMENT", tool
    assert await listed(session, path) == []


async def test_a_roundabout_path_inside_is_the_plain_one(session: Driven):
    written = await session.write("a/./b//c", b"x")
    assert written.result.typed_response.fs_write.path == "a/b/c"
    assert (await session.read("./a//b/./c")).result.typed_response.fs_read.data == b"x"
    assert [file.path for file in await listed(session, recursive=True)] == ["a", "a/b", "a/b/c"]


async def test_links_are_listed_as_links_wherever_they_lead(session: Driven):
    await session.shell("ln -s /etc/passwd out; ln -s gone dangling; ln -s loop loop; ln -s . here")
    found = {file.path: file.link_target for file in await listed(session, recursive=True)}
    assert found == {"out": "/etc/passwd", "dangling": "gone", "loop": "loop", "here": "."}
    for path in ("dangling", "loop"):
        assert await status_of(session, "fs.read", path) in (
            "NOT_FOUND",
            "INVALID_ARGUMENT",
            "FAILED_PRECONDITION",
        )


async def test_what_is_no_regular_file_is_refused_at_once(session: Driven):
    await session.shell("mkfifo fifo; mkdir directory")
    await session.python("import socket; socket.socket(socket.AF_UNIX).bind('socket')")
    async with asyncio.timeout(5):
        for path in ("fifo", "socket", "directory"):
            for tool in ("fs.read", "download"):
                code = await status_of(session, tool, path)
                assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), (tool, path, code)
    made = await session.python("import os; os.link('/etc/passwd', 'hard')")
    assert not made.ok
    assert sorted(file.path for file in await listed(session)) == ["directory", "fifo", "socket"]


@pytest.mark.parametrize("size", [0, 18 * 1024, MIB, 64 * MIB])
async def test_files_of_every_size_are_what_was_sent(wire: Wire, size: int):
    data = random.Random(size).randbytes(size)
    sha256 = hashlib.sha256(data).hexdigest()
    async with driven(wire, max_disk_bytes=160 * MIB) as session:
        if size <= MIB:
            done = (await session.write("file", data)).result.typed_response.fs_write
            assert (done.bytes_written, done.sha256) == (size, sha256)
        summary = await session.upload("file", pieces(data))
        assert (summary.size, summary.sha256) == (size, sha256)
        assert await session.sha256("file") == sha256
        code = "import hashlib; print(hashlib.sha256(open('file', 'rb').read()).hexdigest())"
        assert (await session.python(code)).stdout.decode().strip() == sha256


async def test_readers_of_a_file_that_is_overwritten_see_the_old_or_the_new_one(wire: Wire):
    size = 100 * MIB
    block = random.Random(34).randbytes(MIB)
    versions = [bytes([number]) + block[1:] for number in range(3)]
    hashes = {hashlib.sha256(version * 100).hexdigest() for version in versions}
    async with driven(wire, max_disk_bytes=320 * MIB) as session:
        await session.upload("file", [versions[0]] * 100)
        stop = asyncio.Event()
        seen: set[str] = set()

        async def read() -> None:
            while not stop.is_set():
                seen.add(await session.sha256("file"))

        reading = asyncio.ensure_future(read())
        for version in versions[1:]:
            assert (await session.upload("file", [version] * 100)).size == size
        stop.set()
        await reading
        seen.add(await session.sha256("file"))
        left = [file.path for file in await listed(session)]
    assert seen <= hashes
    assert hashlib.sha256(versions[-1] * 100).hexdigest() in seen
    assert left == ["file"]


async def test_a_large_upload_that_is_refused_says_why(wire: Wire, session: Driven):
    reasons = set()
    for path in ["../x", "/x", "a/../../y"] * 3:
        with pytest.raises(aio.AioRpcError) as caught:
            await session.upload(path, [bytes(MIB)] * 20)
        reasons.add((caught.value.code().name, RichError(caught.value).info.reason))
    with pytest.raises(aio.AioRpcError) as caught:
        await session.upload("too-much", [bytes(MIB)] * 40)
    full = RichError(caught.value)
    with pytest.raises(aio.AioRpcError) as caught:
        await Driven(wire, "ses_none").upload("x", [bytes(MIB)] * 20)
    assert reasons == {("INVALID_ARGUMENT", "PATH_ESCAPE")}
    assert (full.code.name, full.info.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")
    assert RichError(caught.value).info.reason == "SESSION_NOT_FOUND"
    assert await listed(session) == []


@pytest.mark.parametrize(
    ("packages", "status"),
    [
        (["no-such-package"], "failed"),
        (["plain==7"], "failed"),
        (["wants-old"], "failed"),
        (["wants-new", "wants-old"], "failed"),
        (["plain", "no-such-package"], "failed"),
        (["plain; rm -rf /workspace"], "INVALID_ARGUMENT"),
        (["--index-url=http://127.0.0.1:9/simple"], "INVALID_ARGUMENT"),
        (["-r/etc/passwd"], "INVALID_ARGUMENT"),
        (["git+file:///workspace"], "INVALID_ARGUMENT"),
        (["plain @ file:///workspace/plain.whl"], "INVALID_ARGUMENT"),
        (["./plain"], "INVALID_ARGUMENT"),
        (["plain\n--pre"], "INVALID_ARGUMENT"),
        ([], "INVALID_ARGUMENT"),
    ],
    ids=str,
)
async def test_an_install_that_fails_says_so_and_leaves_everything_as_it_was(
    session: Driven, packages: list[str], status: str
):
    await session.write("kept", b"x")
    state = "import os; print(sorted(os.walk('/venv')), os.listdir('/workspace'))"
    before = await session.python(state)
    ran = await install(session, packages)
    after = await session.python(state)
    if status == "failed":
        answer = ran.result.typed_response.pkg_install
        assert answer.exit_code != 0, ran
        assert list(answer.installed) == []
        assert any(name.partition("=")[0] in answer.output for name in packages), answer
    else:
        assert ran.error.code == status, ran
    assert after.stdout == before.stdout


async def test_a_package_is_there_at_once_and_only_where_it_was_installed(
    wire: Wire, session: Driven
):
    show = "import plain; print(plain.VERSION)"
    before = await session.python(show)
    ran = await install(session, ["wants-new"])
    after = await session.python(show)
    async with driven(wire) as other:
        elsewhere = await other.python(show)
    installed = ran.result.typed_response.pkg_install.installed
    assert {(p.name, p.version) for p in installed} == {("plain", "1.0"), ("wants_new", "1.0")}
    assert after.stdout == b"1.0\n"
    for ran in (before, elsewhere):
        assert b"ModuleNotFoundError" in ran.stderr


async def install(session: Driven, packages: list[str]) -> Ran:
    request = tools.PkgInstallRequest(packages=packages)
    return await session.task(tools.ToolRequest(pkg_install=request))


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + MIB] for at in range(0, len(data), MIB)]


async def status_of(session: Driven, tool: str, path: str) -> str:
    """The status of a request that names a path; empty when it was done."""
    try:
        match tool:
            case "upload":
                await session.upload(path, [b"x"])
                return ""
            case "download":
                request = files_pb.DownloadRequest(session_id=session.id, path=path)
                async for _ in session.wire.files.Download(request):
                    pass
                return ""
            case "fs.read":
                ran = await session.read(path)
            case "fs.write":
                ran = await session.write(path, b"x")
            case "fs.list":
                ran = await session.task(tools.ToolRequest(fs_list=tools.FsListRequest(path=path)))
            case "fs.move":
                await session.write("source", b"x")
                ran = await session.task(call("fs.move", source="source", target=path))
            case "run.python":
                ran = await session.task(
                    tools.ToolRequest(run_python=tools.RunPythonRequest(file=path))
                )
            case "run.shell":
                ran = await session.task(call("run.shell", command="true", cwd=path))
            case _:
                ran = await session.task(call(tool, path=path))
    except aio.AioRpcError as error:
        return error.code().name
    if ran.error.code:
        assert json.loads(ran.error.details)["reason"]
    return ran.error.code
