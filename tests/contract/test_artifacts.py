"""What the artifacts of a worker promise, whatever store they lie in."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Full,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    WrongState,
)
from codegen_mcp.engine.artifacts import facts
from codegen_mcp.engine.artifacts.base import ArtifactInfo, UploadTicket
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.stores.memory import MemoryStore
from codegen_mcp.stores.registry import open_store
from codegen_mcp.testing.manual_clock import ManualClock

SESSION = "ses_" + "0" * 32
OTHER = "ses_" + "1" * 32
HOUR_S = 3600


class NamedLinks:
    """Stand for an HTTP server: whoever has the ticket may call ``receive``."""

    def upload_url(self, artifact_id: str, *, size_bytes: int, expires_at_ms: int) -> str:
        return f"put:{artifact_id}:{size_bytes}:{expires_at_ms}"

    def download_url(self, artifact_id: str, *, expires_at_ms: int) -> str:
        return f"get:{artifact_id}:{expires_at_ms}"


@dataclass
class Bench:
    store: ObjectStore
    directory: Path
    keeper: ArtifactKeeper
    restart: Callable[[], Awaitable[None]]

    async def begin(self, size: int, name: str = "a.txt", session: str = SESSION) -> UploadTicket:
        return await self.keeper.begin_upload(
            session_id=session, task_id="t", name=name, content_type="text/plain", size_bytes=size
        )

    async def send(self, ticket: UploadTicket, data: bytes) -> None:
        """PUT, to whichever place the link leads."""
        if not ticket.upload_url.startswith("http"):
            await self.keeper.receive(ticket.artifact_id, pieces(data))
            return
        request = urllib.request.Request(
            ticket.upload_url, data, {"content-type": "text/plain"}, method="PUT"
        )
        await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=10).close())

    async def record(
        self, ticket: UploadTicket, data: bytes, **changes: object
    ) -> tuple[ArtifactInfo, str]:
        values: dict[str, object] = {
            "task_id": "t",
            "name": "a.txt",
            "content_type": "text/plain",
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "labels": {},
        }
        return await self.keeper.record(ticket.artifact_id, **{**values, **changes})  # type: ignore[arg-type]

    async def make(self, data: bytes, name: str = "a.txt", session: str = SESSION) -> ArtifactInfo:
        ticket = await self.begin(len(data), name, session)
        await self.send(ticket, data)
        return (await self.record(ticket, data, name=name))[0]

    async def put(self, data: bytes, size: int | None = None) -> ArtifactInfo:
        return await self.keeper.put(
            session_id=SESSION,
            task_id="t",
            name="a.txt",
            content_type="",
            labels={"path": "artifacts/a.txt"},
            size_bytes=len(data) if size is None else size,
            data=pieces(data),
        )

    async def read(self, artifact_id: str, offset: int = 0, length: int | None = None) -> bytes:
        found = self.keeper.read(artifact_id, offset=offset, length=length)
        return b"".join([piece async for piece in found])

    async def objects(self) -> list[str]:
        return [one.key async for one in self.store.list("")]

    def spooled(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def find_session(session_id: str) -> None:
    if session_id not in {SESSION, OTHER}:
        raise NotFound(f"there is no session {session_id!r}", reason="SESSION_NOT_FOUND")


Opens = Callable[..., Awaitable[Bench]]


async def opened(
    stack: AsyncExitStack,
    store: ObjectStore,
    directory: Path,
    *,
    clock: Clock | None = None,
    room: int = 1 << 40,
    **config: float,
) -> Bench:
    async def enter() -> ArtifactKeeper:
        keeper = ArtifactKeeper(
            store,
            directory,
            find_session=find_session,
            room=lambda: room,
            config=ArtifactConfig(**{"sweep_s": 1000, **config}),  # type: ignore[arg-type]
            clock=clock or SystemClock(),
        )
        await keeper.__aenter__()
        keeper.serve_links(NamedLinks())
        return keeper

    async def restart() -> None:
        await made.keeper.__aexit__(None, None, None)
        made.keeper = await enter()

    made = Bench(store, directory, await enter(), restart)

    async def leave() -> None:
        await made.keeper.__aexit__(None, None, None)

    stack.push_async_callback(leave)
    return made


@pytest.fixture(params=["memory", "local", "s3"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        made = open_store(server.new_url(), environ=server.environ())
    else:
        made = open_store({"memory": "memory:", "local": str(tmp_path / "objects")}[request.param])
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(made)
        yield await opened(stack, store, tmp_path / "uploads")


@pytest.fixture
async def open_bench(tmp_path: Path) -> AsyncIterator[Opens]:
    """Make one over a store in memory with a clock and bounds of its own."""
    async with AsyncExitStack() as stack:

        async def make(**options: object) -> Bench:
            clock = options.pop("clock", None) or ManualClock()
            store = MemoryStore(clock=clock)  # type: ignore[arg-type]
            return await opened(stack, store, tmp_path / "uploads", clock=clock, **options)  # type: ignore[arg-type]

        yield make


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
async def test_what_was_uploaded_and_recorded_is_what_is_read(bench: Bench, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    ticket = await bench.begin(size)
    await bench.send(ticket, data)
    info, link = await bench.record(ticket, data, labels={"kind": "plot"})
    assert (info.artifact_id, info.session_id) == (ticket.artifact_id, SESSION)
    assert (info.size_bytes, info.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert (info.name, info.content_type, info.labels) == ("a.txt", "text/plain", {"kind": "plot"})
    assert link
    assert await bench.read(info.artifact_id) == data
    assert await bench.keeper.get(info.artifact_id) == info
    assert bench.spooled() == []
    key = f"artifacts/{SESSION}/{info.artifact_id}"
    assert await bench.objects() == [f"{key}.data", f"{key}.json"]


async def test_a_range_is_read_alone_and_one_beyond_the_end_is_cut(bench: Bench) -> None:
    info = await bench.make(b"0123456789")
    assert await bench.read(info.artifact_id, 2, 3) == b"234"
    assert await bench.read(info.artifact_id, 8, 100) == b"89"
    assert await bench.read(info.artifact_id, 10) == b""
    assert await bench.read(info.artifact_id, 100, 1) == b""


async def test_recording_twice_with_equal_facts_is_one_artifact(bench: Bench) -> None:
    ticket = await bench.begin(2)
    await bench.send(ticket, b"ab")
    first, second = await asyncio.gather(bench.record(ticket, b"ab"), bench.record(ticket, b"ab"))
    again = await bench.record(ticket, b"ab", name="", content_type="", task_id="")
    assert first[0] == second[0] == again[0]
    await bench.restart()
    assert (await bench.record(ticket, b"ab"))[0] == first[0]
    assert await bench.keeper.list() == [first[0]]


@pytest.mark.parametrize(
    "change", [{"name": "b"}, {"labels": {"a": "b"}}, {"task_id": "u"}, {"content_type": "a/b"}]
)
async def test_recording_again_with_another_fact_is_refused(
    open_bench: Opens, change: dict[str, object]
) -> None:
    bench = await open_bench()
    ticket = await bench.begin(2)
    await bench.send(ticket, b"ab")
    info, _ = await bench.record(ticket, b"ab")
    with pytest.raises(AlreadyExists, match=next(iter(change))):
        await bench.record(ticket, b"ab", **change)
    assert await bench.keeper.list() == [info]


async def test_another_sha256_or_length_is_not_recorded_and_may_be_sent_again(
    bench: Bench,
) -> None:
    ticket = await bench.begin(2)
    await bench.send(ticket, b"xx")
    with pytest.raises(Corrupt, match="2 bytes"):
        await bench.record(ticket, b"abc")
    with pytest.raises(Corrupt, match="upload it again"):
        await bench.record(ticket, b"ab")
    assert await bench.keeper.list() == []
    with pytest.raises(WrongState, match="nothing was uploaded"):
        await bench.record(ticket, b"ab")
    await bench.send(ticket, b"ab")
    info, _ = await bench.record(ticket, b"ab")
    assert await bench.read(info.artifact_id) == b"ab"


async def test_nothing_is_recorded_before_it_was_uploaded(bench: Bench) -> None:
    ticket = await bench.begin(0)
    with pytest.raises(WrongState, match="PUT its bytes"):
        await bench.record(ticket, b"")
    assert await bench.objects() == []


async def test_an_upload_survives_a_restart_before_and_after_its_bytes(bench: Bench) -> None:
    early, late = await bench.begin(5), await bench.begin(4)
    await bench.send(early, b"early")
    await bench.restart()
    await bench.send(late, b"late")
    for ticket, data in ((early, b"early"), (late, b"late")):
        info, _ = await bench.record(ticket, data)
        assert await bench.read(info.artifact_id) == data
    await bench.restart()
    assert {info.artifact_id for info in await bench.keeper.list(SESSION)} == {
        early.artifact_id,
        late.artifact_id,
    }


async def test_a_crash_between_bytes_and_metadata_is_mended_by_recording_again(
    bench: Bench,
) -> None:
    ticket = await bench.begin(3)
    await bench.send(ticket, b"abc")
    # The bytes of an attempt that was cut short, and those of another that was cut shorter.
    await bench.store.put_bytes(facts.data_key(SESSION, ticket.artifact_id), b"ab")
    await bench.restart()
    assert await bench.keeper.list() == []
    info, _ = await bench.record(ticket, b"abc")
    assert await bench.read(info.artifact_id) == b"abc"


async def test_a_crash_before_the_upload_was_forgotten_changes_nothing(bench: Bench) -> None:
    ticket = await bench.begin(3)
    kept = bench.directory / f"{ticket.artifact_id}.json"
    announced = kept.read_bytes()
    await bench.send(ticket, b"abc")
    info, _ = await bench.record(ticket, b"abc")
    kept.write_bytes(announced)
    await bench.restart()
    assert (await bench.record(ticket, b"abc"))[0] == info
    assert bench.spooled() == []


@pytest.mark.parametrize("bench", ["s3"], indirect=True)
async def test_a_link_of_the_store_cannot_change_what_was_recorded(bench: Bench) -> None:
    ticket = await bench.begin(3)
    await bench.send(ticket, b"abc")
    info, _ = await bench.record(ticket, b"abc")
    await bench.send(ticket, b"xyz")
    assert await bench.read(info.artifact_id) == b"abc"


async def test_the_newest_come_first_and_pages_join_to_the_whole(open_bench: Opens) -> None:
    clock = ManualClock()
    bench = await open_bench(clock=clock)
    made = []
    for number in range(7):
        made.append(await bench.make(b"x", session=SESSION if number % 2 else OTHER))
        clock.advance(number % 3)  # some are of the same moment
    whole = list(await bench.keeper.list())
    assert sorted(whole, key=lambda one: one.artifact_id) == sorted(
        made, key=lambda one: one.artifact_id
    )
    assert [one.created_at_ms for one in whole] == sorted(
        (one.created_at_ms for one in made), reverse=True
    )
    paged: list[ArtifactInfo] = []
    while page := await bench.keeper.list(
        before=(paged[-1].created_at_ms, paged[-1].artifact_id) if paged else None, limit=2
    ):
        paged += page
    assert paged == whole
    assert {one.session_id for one in await bench.keeper.list(OTHER)} == {OTHER}
    assert await bench.keeper.list(SESSION, task_id="none") == []


async def test_a_deleted_artifact_is_gone_at_once_and_after_a_restart(bench: Bench) -> None:
    info = await bench.make(b"abc")
    assert await bench.keeper.delete(info.artifact_id) is True
    assert await bench.keeper.delete(info.artifact_id) is False
    for _ in range(2):
        with pytest.raises(NotFound):
            await bench.keeper.get(info.artifact_id)
        await bench.restart()
    assert await bench.objects() == []


async def test_our_own_streams_are_stored_with_their_labels(bench: Bench) -> None:
    info = await bench.put(b"abc")
    assert (info.content_type, info.labels) == (facts.DEFAULT_TYPE, {"path": "artifacts/a.txt"})
    assert await bench.read(info.artifact_id) == b"abc"
    await bench.restart()
    assert await bench.keeper.get(info.artifact_id) == info


@pytest.mark.parametrize("size", [2, 4])
async def test_a_stream_of_another_length_leaves_nothing(bench: Bench, size: int) -> None:
    with pytest.raises((LimitExceeded, InvalidRequest)):
        await bench.put(b"abc", size)
    assert await bench.objects() == []
    assert bench.spooled() == []


async def test_an_upload_of_another_length_keeps_nothing(open_bench: Opens) -> None:
    bench = await open_bench()
    ticket = await bench.begin(3)
    with pytest.raises(LimitExceeded, match="announced 3 bytes"):
        await bench.send(ticket, b"abcd")
    with pytest.raises(InvalidRequest, match="2 bytes came"):
        await bench.send(ticket, b"ab")
    assert bench.spooled() == [f"{ticket.artifact_id}.json"]


async def test_one_upload_at_a_time_and_none_after_recording(open_bench: Opens) -> None:
    bench = await open_bench()
    ticket = await bench.begin(2)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"a"
        begun.set()
        await go_on.wait()
        yield b"b"

    sending = asyncio.create_task(bench.keeper.receive(ticket.artifact_id, slowly()))
    await begun.wait()
    with pytest.raises(Conflict):
        await bench.send(ticket, b"xy")
    go_on.set()
    await sending
    await bench.record(ticket, b"ab")
    with pytest.raises(AlreadyExists):
        await bench.send(ticket, b"ab")


async def test_a_cancelled_upload_leaves_nothing_and_may_be_sent_again(open_bench: Opens) -> None:
    bench = await open_bench()
    ticket = await bench.begin(2)
    begun = asyncio.Event()

    async def never_ending() -> AsyncIterator[bytes]:
        yield b"a"
        begun.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(bench.keeper.receive(ticket.artifact_id, never_ending()))
    await begun.wait()
    assert bench.spooled() == [f"{ticket.artifact_id}.json", f"{ticket.artifact_id}.part"]
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert bench.spooled() == [f"{ticket.artifact_id}.json"]
    await bench.send(ticket, b"ab")
    await bench.record(ticket, b"ab")


async def test_an_upload_that_was_never_recorded_is_cleaned_after_its_link(
    open_bench: Opens,
) -> None:
    clock = ManualClock()
    bench = await open_bench(clock=clock)
    sent, unsent = await bench.begin(2), await bench.begin(2)
    await bench.send(sent, b"ab")
    clock.advance(HOUR_S)
    with pytest.raises(NotFound):
        await bench.send(unsent, b"ab")
    await bench.keeper.sweeper.sweep()
    assert f"{sent.artifact_id}.data" in bench.spooled()  # it may have come at the last moment
    await bench.restart()
    clock.advance(HOUR_S)
    await bench.keeper.sweeper.sweep()
    assert bench.spooled() == []
    for ticket in (sent, unsent):
        with pytest.raises(NotFound):
            await bench.record(ticket, b"ab")


async def test_an_artifact_is_deleted_after_its_time_and_outlives_its_session(
    open_bench: Opens,
) -> None:
    clock = ManualClock()
    bench = await open_bench(clock=clock, ttl_s=7 * 24 * HOUR_S)
    info = await bench.make(b"abc")
    clock.advance(7 * 24 * HOUR_S)
    later = await bench.make(b"abc")
    await bench.keeper.sweeper.sweep()
    assert await bench.read(info.artifact_id) == b"abc"
    clock.advance(1)
    await bench.keeper.sweeper.sweep()
    assert await bench.keeper.list() == [later]
    assert len(await bench.objects()) == 2


async def test_bytes_without_metadata_are_removed_once_nobody_can_record_them(
    open_bench: Opens,
) -> None:
    clock = ManualClock()
    bench = await open_bench(clock=clock)
    lost = facts.data_key(SESSION, facts.new_artifact_id())
    strange = "artifacts/read-me.txt"
    await bench.store.put_bytes(lost, b"x")
    await bench.store.put_bytes(strange, b"not ours")
    await bench.restart()
    await bench.keeper.sweeper.sweep()
    assert await bench.objects() == sorted([lost, strange])
    clock.advance(2 * HOUR_S)
    await bench.keeper.sweeper.sweep()
    assert await bench.objects() == [strange]


async def test_files_of_a_dead_worker_that_belong_to_nobody_are_removed(open_bench: Opens) -> None:
    bench = await open_bench()
    ticket = await bench.begin(2)
    for name in ("art_x.part", "art_y.data", "art_z.json.tmp"):
        (bench.directory / name).write_bytes(b"x")
    await bench.restart()
    assert bench.spooled() == [f"{ticket.artifact_id}.json"]


async def test_quotas_count_what_was_announced(open_bench: Opens) -> None:
    bench = await open_bench(max_bytes=10, session_bytes=15, session_count=3)
    with pytest.raises(LimitExceeded, match="10 bytes, not 11"):
        await bench.begin(11)
    with pytest.raises(InvalidRequest, match="-1"):
        await bench.begin(-1)
    await bench.make(b"0123456789")
    await bench.begin(5)
    with pytest.raises(LimitExceeded, match="have 15 bytes"):
        await bench.put(b"x")
    await bench.begin(0)
    with pytest.raises(LimitExceeded, match="3 artifacts"):
        await bench.begin(0)
    await bench.begin(10, session=OTHER)


async def test_the_artifacts_of_ended_sessions_count_too(open_bench: Opens) -> None:
    bench = await open_bench(total_bytes=5)
    info = await bench.make(b"123")
    with pytest.raises(Full, match=r"have 3 bytes, .* may have 5"):
        await bench.begin(3, session=OTHER)
    await bench.restart()
    with pytest.raises(Full):
        await bench.put(b"123")
    await bench.keeper.delete(info.artifact_id)
    await bench.make(b"12345", session=OTHER)


async def test_a_disk_without_room_takes_no_upload(open_bench: Opens) -> None:
    bench = await open_bench(room=2)
    ticket = await bench.begin(3)
    with pytest.raises(Full, match="no room"):
        await bench.send(ticket, b"abc")


async def test_links_are_refused_by_the_setting_where_nothing_serves_them(
    open_bench: Opens,
) -> None:
    bench = await open_bench()
    info = await bench.make(b"abc")
    bench.keeper.serve_links(None)
    with pytest.raises(WrongState, match="HTTP_PORT"):
        await bench.begin(1)
    assert await bench.keeper.download_link(info) == ""
    assert bench.spooled() == []


async def test_changed_bytes_are_told_before_the_last_of_them(open_bench: Opens) -> None:
    bench = await open_bench()
    for bad in (b"abX", b"ab", b""):
        info = await bench.make(b"abc")
        key = facts.data_key(SESSION, info.artifact_id)
        await bench.store.delete(key)
        await bench.store.put_bytes(key, bad)
        with pytest.raises(Corrupt):
            await bench.read(info.artifact_id)
    await bench.store.delete(key)
    with pytest.raises(Corrupt):
        await bench.read(info.artifact_id, 1, 1)


async def test_damaged_metadata_is_no_artifact_and_hides_no_other(open_bench: Opens) -> None:
    bench = await open_bench()
    good, bad = await bench.make(b"abc"), await bench.make(b"abc")
    key = facts.record_key(SESSION, bad.artifact_id)
    whole = b"".join([piece async for piece in bench.store.get(key)])
    for damaged in (b"", b"[]", whole[:-1], whole.replace(b'"format":1', b'"format":2')):
        await bench.store.delete(key)
        await bench.store.put_bytes(key, damaged)
        await bench.restart()
        assert await bench.keeper.list() == [good]


async def test_ids_are_long_and_all_different(open_bench: Opens) -> None:
    bench = await open_bench()
    ids = {(await bench.begin(0)).artifact_id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(one) == 36 and one.startswith("art_") for one in ids)


@pytest.mark.parametrize("artifact_id", ["", "x", "art_" + "g" * 32, "art_" + "0" * 31, "../x"])
async def test_what_is_no_id_is_not_found(open_bench: Opens, artifact_id: str) -> None:
    bench = await open_bench()
    with pytest.raises(NotFound):
        await bench.keeper.get(artifact_id)
    assert await bench.keeper.delete(artifact_id) is False
    ticket = UploadTicket(artifact_id=artifact_id, upload_url="", expires_at_ms=0)
    with pytest.raises(NotFound):
        await bench.record(ticket, b"")
    with pytest.raises(NotFound):
        await bench.keeper.receive(artifact_id, pieces(b""))


async def test_a_session_that_is_not_there_gets_no_link(open_bench: Opens) -> None:
    bench = await open_bench()
    with pytest.raises(NotFound, match="session"):
        await bench.begin(1, session="ses_none")


async def test_facts_outlive_a_restart_exactly(bench: Bench) -> None:
    name = "Übersicht – v1.0 (final).tar.gz 🎉"
    ticket = await bench.begin(1, name)
    await bench.send(ticket, b"x")
    info, _ = await bench.record(ticket, b"x", name=name, labels={"ключ": 'a"b\\\n'})
    await bench.restart()
    found = await bench.keeper.get(info.artifact_id)
    assert dataclasses.asdict(found) == dataclasses.asdict(info)
