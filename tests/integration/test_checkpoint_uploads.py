"""Checkpoints while the S3 store behind them fails: none is lost, and none is half there."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.bootstrap import open_engine
from codegen_mcp.cli.main import main
from codegen_mcp.core.errors import Corrupt, InvalidRequest, StoreUnavailable
from codegen_mcp.engine.checkpoints.taker import LIVE_STATE
from codegen_mcp.stores.s3 import S3Store
from codegen_mcp.testing.checkpoint_rig import (
    CheckpointRig,
    checkpoint_rig,
    drafts_in,
    engine_settings,
    ids,
    impatient,
    keys,
    problems,
)
from codegen_mcp.testing.fault_proxy import Fault, FaultProxy, Rule
from codegen_mcp.testing.s3_server import S3Server
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import state_directory, worker_process

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
SCHEDULES = 20
"""In each run."""
SEEDS = 30 if SOAK else 1
KILLS = 18 if SOAK else 1
BYTES = (256 if SOAK else 64) * 1024 * 1024
FLAT_BYTES = 64 * 1024 * 1024
WITHIN_S = 60

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800 if SOAK else 120),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[CheckpointRig]:
    async with state_directory() as state:
        async with checkpoint_rig(state) as opened:
            yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def session(rig: CheckpointRig) -> AsyncIterator[str]:
    made = await rig.session()
    yield made
    await rig.engine.sessions.destroy(made, force=True)


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(s3: S3Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(s3.endpoint) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def store(s3: S3Server, proxy: FaultProxy) -> AsyncIterator[S3Store]:
    async with impatient(s3, s3.new_url(), proxy.endpoint) as opened:
        yield opened


async def write(rig: CheckpointRig, session: str, text: str) -> None:
    await rig.run(session, f'open("a", "w").write("{text}")')


async def read(rig: CheckpointRig, checkpoints, checkpoint_id: str) -> str:
    return await rig.content(checkpoints, checkpoint_id, 'print(open("a").read())')


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.STATUS, Fault.HANG])
async def test_what_is_saved_while_the_store_is_away_is_stored_when_it_is_back(
    rig, session, store, proxy, tmp_path, fault
):
    async with rig.checkpoints(store, tmp_path) as checkpoints:
        await write(rig, session, "before")
        before = await checkpoints.save(session)
        proxy.add(Rule(fault=fault))
        await write(rig, session, "away")
        with pytest.raises(StoreUnavailable) as refused:
            await checkpoints.save(session, incremental=True)
        assert refused.value.reason == "CHECKPOINT_NOT_STORED"
        waiting = f"{session}.1.2"
        assert repr(waiting) in refused.value.message
        assert drafts_in(tmp_path) == [waiting]
        proxy.clear()
        assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
        assert drafts_in(tmp_path) == []
        assert await ids(checkpoints) == [waiting, str(before.checkpoint_id)]
        assert checkpoints.last(session) == waiting
        assert await read(rig, checkpoints, waiting) == "away"


@pytest.mark.parametrize("restored", [False, True])
async def test_a_number_is_not_used_again_by_a_worker_that_starts_while_the_store_is_away(
    rig, session, store, proxy, tmp_path, restored
):
    async with rig.checkpoints(store, tmp_path) as checkpoints:
        await write(rig, session, "first")
        first = await checkpoints.save(session)
        proxy.add(Rule(fault=Fault.REFUSE))
        await write(rig, session, "second")
        with pytest.raises(StoreUnavailable):
            await checkpoints.save(session)
        proxy.clear()
        assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
        if restored:
            await checkpoints.restore(str(first.checkpoint_id), create_new_session=False)
    # What makes the next save cheap is only a hint, and may not have been written.
    hint = rig.engine.sessions.session(session).directory / LIVE_STATE
    hint.unlink(missing_ok=True)
    proxy.add(Rule(fault=Fault.REFUSE))
    async with rig.checkpoints(store, tmp_path) as checkpoints:
        await write(rig, session, "third")
        with pytest.raises(StoreUnavailable) as refused:
            await checkpoints.save(session)
        assert repr(f"{session}.1.3") in refused.value.message
        proxy.clear()
        assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
        assert await ids(checkpoints) == [f"{session}.1.{n}" for n in (3, 2, 1)]
        assert await read(rig, checkpoints, str(first.checkpoint_id)) == "first"
        assert await read(rig, checkpoints, f"{session}.1.2") == "second"
        assert await read(rig, checkpoints, f"{session}.1.3") == "third"


async def test_a_draft_that_waits_keeps_what_it_needs_and_its_number(
    rig, session, store, proxy, tmp_path
):
    async with rig.checkpoints(store, tmp_path, keep=1, retry_s=(3600.0,)) as checkpoints:
        await write(rig, session, "first")
        first = await checkpoints.save(session)
        await rig.run(session, 'open("b", "w").write("b")')
        proxy.add(Rule(fault=Fault.STATUS, method="PUT"))
        with pytest.raises(StoreUnavailable):
            await checkpoints.save(session, incremental=True)
        proxy.clear()
        third = await checkpoints.save(session)
        assert third.checkpoint_id.number == 3
        await checkpoints.delete(str(third.checkpoint_id))
        assert await ids(checkpoints) == []
        assert first.checkpoint_id.key + ".tar.gz" in await keys(store)
    async with rig.checkpoints(store, tmp_path, keep=1) as restarted:
        assert await asyncio.wait_for(restarted.stored(), WITHIN_S) == 0
        assert await ids(restarted) == [f"{session}.1.2"]
        assert await read(rig, restarted, f"{session}.1.2") == "first"
        assert (await restarted.save(session)).checkpoint_id.number == 4


async def test_of_those_that_wait_the_oldest_go_and_their_numbers_are_not_used_again(
    rig, session, store, proxy, tmp_path
):
    proxy.add(Rule(fault=Fault.STATUS))
    async with rig.checkpoints(store, tmp_path, keep=2) as checkpoints:
        for number in range(4):
            await write(rig, session, str(number))
            with pytest.raises(StoreUnavailable, match="is complete on this worker"):
                await checkpoints.save(session)
        assert drafts_in(tmp_path) == [f"{session}.1.3", f"{session}.1.4"]
    async with rig.checkpoints(store, tmp_path, keep=2) as restarted:
        proxy.clear()
        assert await asyncio.wait_for(restarted.stored(), WITHIN_S) == 0
        assert await ids(restarted) == [f"{session}.1.4", f"{session}.1.3"]
        assert await read(rig, restarted, f"{session}.1.4") == "3"


@pytest.mark.parametrize("suffix", ["tar.gz", "manifest.gz", "journal.gz", "json"])
async def test_what_comes_back_damaged_is_not_saved_and_nothing_of_it_is_left(
    rig, session, store, proxy, tmp_path, suffix
):
    async with rig.checkpoints(store, tmp_path) as checkpoints:
        await write(rig, session, "a")
        proxy.add(Rule(fault=Fault.FLIP_ANSWER, method="GET", target=rf"\.{suffix}$", times=1))
        with pytest.raises(Corrupt, match=session) as damaged:
            await checkpoints.save(session)
        assert damaged.value.reason == "CHECKPOINT_DAMAGED"
        assert await ids(checkpoints) == []
        assert await keys(store) == []
        assert drafts_in(tmp_path) == []
        saved = await checkpoints.save(session)
        assert await ids(checkpoints) == [str(saved.checkpoint_id)]


async def test_a_draft_that_comes_back_damaged_is_stored_anew(rig, session, store, proxy, tmp_path):
    async with rig.checkpoints(store, tmp_path) as checkpoints:
        await write(rig, session, "a")
        proxy.add(Rule(fault=Fault.STATUS, method="PUT", target=r"\.tar", times=2))
        flip = proxy.add(Rule(fault=Fault.FLIP_ANSWER, method="GET", target=r"\.tar", times=2))
        with pytest.raises(StoreUnavailable):
            await checkpoints.save(session)
        assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
        assert flip.hits == 2
        assert await problems(checkpoints) == []
        assert await read(rig, checkpoints, f"{session}.1.1") == "a"


async def test_a_save_whose_caller_leaves_is_stored_all_the_same(
    rig, session, store, proxy, tmp_path
):
    async with rig.checkpoints(store, tmp_path) as checkpoints:
        await write(rig, session, "a")
        hang = proxy.add(Rule(fault=Fault.HANG, method="PUT", times=1))
        save = asyncio.ensure_future(checkpoints.save(session))
        await asyncio.wait_for(hang.met.wait(), WITHIN_S)
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
        assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
        assert await ids(checkpoints) == [f"{session}.1.1"]


def schedule(dice: random.Random) -> list[Rule]:
    """Some faults at some of the next requests."""
    faults = [fault for fault in Fault if fault is not Fault.FLIP_ANSWER]
    return [
        Rule(
            fault=dice.choice(faults),
            method=dice.choice(["", "PUT", "GET", "HEAD"]),
            status=dice.choice([500, 503, 429]),
            skip=dice.randrange(25),
            times=dice.randint(1, 4),
        )
        for _ in range(dice.randint(1, 4))
    ]


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_fails_nothing_answered_is_lost_and_nothing_half_there_is_listed(
    rig, session, store, proxy, tmp_path, seed
):
    dice = random.Random(seed)
    wanted: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for number in range(SCHEDULES):
            if number == 0 or dice.random() < 0.3:
                await stack.aclose()
                opening = rig.checkpoints(store, tmp_path, keep=1000)
                checkpoints = await stack.enter_async_context(opening)
            for rule in schedule(dice):
                proxy.add(rule)
            text = str(number)
            await write(rig, session, text)
            try:
                saved = await checkpoints.save(session, incremental=dice.random() < 0.7)
                waits = str(saved.checkpoint_id)
            except StoreUnavailable as error:
                assert error.reason == "CHECKPOINT_NOT_STORED"  # noqa: PT017 - or it is saved
                waits = error.message.split("'")[1]
            wanted[waits] = text
    proxy.clear()
    assert len(wanted) == SCHEDULES
    async with rig.checkpoints(store, tmp_path, keep=1000) as checkpoints:
        assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
        assert sorted(await ids(checkpoints)) == sorted(wanted)
        assert await problems(checkpoints) == []
        for checkpoint_id in wanted if SOAK else dice.sample(sorted(wanted), 2):
            assert await read(rig, checkpoints, checkpoint_id) == wanted[checkpoint_id]
    assert drafts_in(tmp_path) == []
    assert await keys(store, "~staging") == []


CHILD = """
import asyncio, sys
from codegen_mcp.settings import Settings
from codegen_mcp.testing.checkpoint_rig import CheckpointRig
from codegen_mcp.bootstrap import open_engine

async def main():
    async with open_engine(Settings.model_validate_json(sys.argv[1])) as engine:
        rig = CheckpointRig(engine)
        session = await rig.session()
        for text in ("first", "second"):
            await rig.run(session, f'open("a", "w").write("{text}")')
            saved = await engine.checkpoints.save(session, incremental=True)
            print(saved.checkpoint_id, flush=True)
            sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.parametrize("kill", range(KILLS))
async def test_a_worker_killed_in_an_upload_leaves_it_to_the_next_one(s3, proxy, monkeypatch, kill):
    suffix = ["json", "tar.gz", "manifest.gz"][kill % 3]
    fault = [Fault.HANG, Fault.CUT_BODY, Fault.LOSE_ANSWER][kill // 3 % 3]
    for name, value in s3.environ(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    async with state_directory() as state:
        # On a plain volume: a loop device may be held by the mounts of other processes.
        settings = engine_settings(state, checkpoint_dir=s3.new_url(), volume="plain")
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, settings.model_dump_json(by_alias=True)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert worker.stdout is not None
            assert worker.stdin is not None
            first = ""
            while not first.startswith("ses_"):
                line = await asyncio.wait_for(worker.stdout.readline(), WITHIN_S)
                assert line, "the worker ended"
                first = line.decode().strip()
            rule = proxy.add(Rule(fault=fault, method="PUT", target=rf"2\.{suffix}$"))
            worker.stdin.write(b"\n")
            await asyncio.wait_for(rule.met.wait(), WITHIN_S)
        finally:
            worker.kill()
            await worker.wait()
        second = first.removesuffix("1") + "2"
        assert drafts_in(state / "drafts") == [second]
        (state / "drafts" / (first.removesuffix("1") + "3")).mkdir()
        (state / "drafts" / ".scratch-of-a-dead-one").touch()
        proxy.clear()
        async with open_engine(settings, keep_sessions=False) as engine:
            rig, checkpoints = CheckpointRig(engine), engine.checkpoints
            assert await asyncio.wait_for(checkpoints.stored(), WITHIN_S) == 0
            assert drafts_in(state / "drafts") == []
            assert await ids(checkpoints) == [second, first]
            assert await read(rig, checkpoints, first) == "first"
            assert await read(rig, checkpoints, second) == "second"
            assert (await checkpoints.save(first.partition(".")[0])).checkpoint_id.number == 3


MEASURE = """
import asyncio, sys
from pathlib import Path
from codegen_mcp.settings import Settings
from codegen_mcp.testing.checkpoint_rig import CheckpointRig
from codegen_mcp.bootstrap import open_engine

WRITE = "import os; f = open('a', 'wb'); [f.write(os.urandom(1 << 20)) for _ in range({})]"

def peak():  # not ru_maxrss: that has what the process had before execve(2), too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

async def main():
    settings, mebibytes = Settings.model_validate_json(sys.argv[1]), int(sys.argv[2])
    async with open_engine(settings, keep_sessions=False) as engine:
        rig, checkpoints = CheckpointRig(engine), engine.checkpoints
        session = await rig.session()

        async def cycle(count):
            await rig.run(session, WRITE.format(count))
            saved = await checkpoints.save(session)
            assert saved.size_bytes >= count << 20
            code = "import os; print(os.path.getsize('a'))"
            found = await rig.content(checkpoints, str(saved.checkpoint_id), code)
            assert found == str(count << 20)

        await cycle(1)
        before = peak()
        await cycle(mebibytes)
        print("grew by", peak() - before)

asyncio.run(main())
"""


async def test_memory_stays_flat_while_a_large_session_is_saved_and_restored(s3):
    async with state_directory() as state:
        settings = engine_settings(
            state,
            checkpoint_dir=s3.new_url(),
            disk_bytes=BYTES + 64 * 1024 * 1024,
            volume="plain",
        )
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MEASURE, settings.model_dump_json(by_alias=True)),
            str(BYTES >> 20),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **s3.environ()},
        )
        try:
            output, _ = await worker.communicate()
        finally:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
    assert worker.returncode == 0
    grown = int(output.decode().partition("grew by")[2].split()[0])
    assert grown < FLAT_BYTES


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[tuple[Wire, str]]:
    """A worker process over a store, and a session of it."""
    async with worker_process(pool_size=0, **settings) as worker, dial(worker.address) as wire:
        yield wire, await wire.session()


async def test_a_worker_takes_its_store_from_the_environment(s3, monkeypatch):
    for name, value in s3.environ().items():
        monkeypatch.setenv(name, value)
    url = s3.new_url()
    async with serving(checkpoint_dir=url) as (wire, session):
        saved = await wire.sessions.CheckpointSession(pb.CheckpointRequest(session_id=session))
        listed = await wire.sessions.ListCheckpoints(pb.ListCheckpointsRequest())
    assert [one.checkpoint_id for one in listed.checkpoints] == [saved.checkpoint_id]
    async with impatient(s3, url, request_timeout_s=20.0) as store:
        assert len(await keys(store, session)) >= 3
        assert saved.metadata.storage_url.startswith(url)


async def test_a_bucket_that_is_not_there_is_said_with_what_to_do(s3, monkeypatch):
    for name, value in s3.environ().items():
        monkeypatch.setenv(name, value)
    async with serving(checkpoint_dir="s3://not-there/p") as (wire, session):
        with pytest.raises(aio.AioRpcError) as refused:
            await wire.sessions.CheckpointSession(pb.CheckpointRequest(session_id=session))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    said = refused.value.details() or ""
    assert "NoSuchBucket; make the bucket, or correct its name" in said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/p", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://key:secret@bucket/p", "store 's3://***@bucket/p' is not valid"),
        ("relative", "use an absolute path, file:///path, memory: or s3://bucket/prefix"),
    ],
)
async def test_a_store_that_cannot_be_is_refused_at_the_start(monkeypatch, address, said):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    async with state_directory() as state:
        settings = engine_settings(state, checkpoint_dir=address)
        with pytest.raises(InvalidRequest, match=re.escape(said)):
            async with open_engine(settings):
                raise AssertionError("it opened")


async def test_the_command_config_masks_secrets(monkeypatch, capsys):
    monkeypatch.setenv("CHECKPOINT_DIR", "s3://key:hush-hush@bucket/p")
    monkeypatch.setenv(
        "PACKAGE_INDEX_URLS", "https://u:hush-hush@h/simple https://i/s?token=hush-hush"
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    for options in ([], ["--json"]):
        assert main(["config", *options]) == 0
        shown = capsys.readouterr().out
        assert "hush" not in shown
        assert "s3://***@bucket/p" in shown
        assert "https://***@h/simple https://i/s?***" in shown
