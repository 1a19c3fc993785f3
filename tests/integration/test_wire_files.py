from __future__ import annotations

import hashlib
import random

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as pb
from codegen_mcp.testing.wire import RichError, Wire, memory_worker

MIB = 1024 * 1024


async def test_a_large_file_goes_in_and_comes_out_exactly():
    data = random.Random(1).randbytes(9 * MIB + 17)
    digest = hashlib.sha256(data).hexdigest()
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        summary = await upload(
            worker.wire,
            header(session_id, "deep/big.bin", create_dirs=True, size=len(data), sha256=digest),
            *pieces(data),
            end(data),
        )
        chunks, final = await download(worker.wire, session_id, "deep/big.bin")
    assert (summary.path, summary.size, summary.sha256) == ("deep/big.bin", len(data), digest)
    assert b"".join(chunks) == data
    assert (final.size, final.sha256) == (len(data), digest)
    assert max(map(len, chunks)) <= MIB


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 5), (3, 0), (MIB - 2, 4), (2 * MIB, 9), (3 * MIB + 1, 0), (99, 1)]
)
async def test_a_range_is_what_a_slice_would_be(offset, length):
    data = random.Random(2).randbytes(3 * MIB)
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        workspace = worker.engine.sessions.workspace(session_id)
        await workspace.write("f", data, create_dirs=False, mode=None)
        chunks, final = await download(worker.wire, session_id, "f", offset=offset, length=length)
    wanted = data[offset : offset + length] if length else data[offset:]
    assert b"".join(chunks) == wanted
    assert (final.size, final.sha256) == (len(wanted), hashlib.sha256(wanted).hexdigest())


async def test_an_empty_file_has_only_a_header_and_an_end():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        summary = await upload(worker.wire, header(session_id, "empty"), end(b""))
        chunks, final = await download(worker.wire, session_id, "empty")
    assert summary.size == 0
    assert chunks == []
    assert final.sha256 == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (lambda s: [], "INVALID_REQUEST"),
        (lambda s: [pb.UploadChunk(data=b"x"), end(b"x")], "INVALID_REQUEST"),
        (lambda s: [header(s, "f"), pb.UploadChunk(data=b"new")], "UPLOAD_INCOMPLETE"),
        (lambda s: [header(s, "f"), pb.UploadChunk(data=b"new"), end(b"ne")], "UPLOAD_MISMATCH"),
        (lambda s: [header(s, "f"), header(s, "f"), end(b"")], "INVALID_REQUEST"),
        (lambda s: [header(s, "f"), end(b""), pb.UploadChunk(data=b"x")], "INVALID_REQUEST"),
        (
            lambda s: [header(s, "f"), pb.UploadChunk(data=b"x" * (MIB + 1)), end(b"")],
            "INVALID_REQUEST",
        ),
        (
            lambda s: [header(s, "f", size=9), pb.UploadChunk(data=b"new"), end(b"new")],
            "INVALID_REQUEST",
        ),
        (lambda s: [header(s, "../f"), end(b"")], "PATH_ESCAPE"),
    ],
)
async def test_a_bad_upload_leaves_the_old_file_as_it_was(parts, reason):
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        await upload(worker.wire, header(session_id, "f"), pb.UploadChunk(data=b"old"), end(b"old"))
        with pytest.raises(aio.AioRpcError) as caught:
            await upload(worker.wire, *parts(session_id))
        chunks, _ = await download(worker.wire, session_id, "f")
    error = RichError(caught.value)
    assert (error.code, error.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert chunks == [b"old"]


@pytest.mark.parametrize(
    ("session", "path", "offset", "code"),
    [
        ("", "none", 0, grpc.StatusCode.NOT_FOUND),
        ("ses_none", "f", 0, grpc.StatusCode.NOT_FOUND),
        ("", "d", 0, grpc.StatusCode.FAILED_PRECONDITION),
        ("", "/f", 0, grpc.StatusCode.INVALID_ARGUMENT),
        ("", "f", -1, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_download_that_cannot_be_is_refused(session, path, offset, code):
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        await worker.engine.sessions.workspace(session_id).make_dir("d")
        with pytest.raises(aio.AioRpcError) as caught:
            await download(worker.wire, session or session_id, path, offset=offset)
    assert caught.value.code() is code


async def test_an_upload_beyond_the_quota_is_refused():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        worker.engine.sessions.workspace(session_id)._max_bytes = 10
        with pytest.raises(aio.AioRpcError) as caught:
            await upload(
                worker.wire, header(session_id, "f"), pb.UploadChunk(data=b"x" * 11), end(b"x" * 11)
            )
    assert RichError(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def header(session_id: str, path: str, **fields: object) -> pb.UploadChunk:
    return pb.UploadChunk(header=pb.UploadHeader(session_id=session_id, path=path, **fields))


def end(data: bytes) -> pb.UploadChunk:
    return pb.UploadChunk(end=pb.UploadEnd(size=len(data), sha256=hashlib.sha256(data).hexdigest()))


def pieces(data: bytes) -> list[pb.UploadChunk]:
    return [pb.UploadChunk(data=data[at : at + MIB]) for at in range(0, len(data), MIB)]


async def upload(wire: Wire, *parts: pb.UploadChunk) -> pb.UploadSummary:
    return await wire.files.Upload(iter(parts))


async def download(
    wire: Wire, session_id: str, path: str, **fields: int
) -> tuple[list[bytes], pb.DownloadSummary]:
    request = pb.DownloadRequest(session_id=session_id, path=path, **fields)
    *data, last = [part async for part in wire.files.Download(request)]
    assert last.HasField("summary")
    return [part.data for part in data], last.summary
