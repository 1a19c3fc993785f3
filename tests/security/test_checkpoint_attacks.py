"""Hostile code, callers, files and stores against checkpoints: what each of them once could do."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, Entry, EntryKind
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import (
    Corrupt,
    Full,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    WorkerError,
    WrongState,
)
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits
from codegen_mcp.engine.checkpoints import (
    bounds,
    catalog,
    checkpointer,
    fanotify_watch,
    inotify_reading,
    tree_watch,
)
from codegen_mcp.engine.checkpoints.facts import SHOWN_BYTES
from codegen_mcp.engine.checkpoints.fanotify_watch import FanotifyWatch
from codegen_mcp.engine.checkpoints.inotify_watch import InotifyWatch
from codegen_mcp.engine.checkpoints.manifest import Manifest, encode_manifest
from codegen_mcp.engine.checkpoints.metadata import decode_info, encode_info
from codegen_mcp.engine.checkpoints.recent import MOST_ENTRIES, RecentManifests
from codegen_mcp.engine.checkpoints.scan import scan
from codegen_mcp.engine.checkpoints.tree_table import TreeTable, walk
from codegen_mcp.engine.task_journal import FILE_NAME
from codegen_mcp.engine.task_ledger import TaskLedger
from codegen_mcp.stores import local_files
from codegen_mcp.stores.local import LocalStore
from codegen_mcp.stores.memory import MemoryStore
from codegen_mcp.testing.capture_rig import capture, restore
from codegen_mcp.testing.checkpoint_engine import (
    CheckpointEngine,
    checkpoint_engine,
    state_directory,
)
from codegen_mcp.testing.refill_rig import make_volume
from codegen_mcp.testing.small_host import small_host

SESSION = "ses_" + "a" * 32
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="sessions with users of their own")
DEEP = """
import os
fd = os.open(".", os.O_RDONLY)
for _ in range({depth}):
    os.mkdir({name!r}, 0o755, dir_fd=fd)
    below = os.open({name!r}, os.O_RDONLY, dir_fd=fd)
    os.close(fd)
    fd = below
for i in range({files}):
    os.close(os.open(b"%d" % i, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
"""

ASYNC = pytest.mark.asyncio(loop_scope="module")

pytestmark = pytest.mark.timeout(120)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[CheckpointEngine]:
    with state_directory() as state:
        async with checkpoint_engine(state, pool_size=0) as opened:
            yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def clean(rig: CheckpointEngine) -> AsyncIterator[CheckpointEngine]:
    """The rig, with nothing in it before and nothing left of a save or restore after."""
    yield rig
    for view in rig.engine.sessions.list():
        await rig.destroy(view.session_id)
    assert rig.remains() == []


# Code that wants the worker's memory, time or threads.


@ASYNC
@NEEDS_ROOT
async def test_deep_names_that_are_no_text_cost_no_more_than_they_may(
    clean: CheckpointEngine,
) -> None:
    session_id = await clean.create()
    code = DEEP.format(depth=100, name=b"\xff" * 250, files=300)
    await clean.python(session_id, code)
    info = await clean.save(session_id)
    shown = sum(len(path.encode()) for path in info.modified_files)
    assert shown <= SHOWN_BYTES
    assert info.modified_count > len(info.modified_files) > 0
    assert clean.object(info, ".json").stat().st_size < 8 * SHOWN_BYTES
    tree = clean.tree(session_id)
    await clean.destroy(session_id)
    await clean.comes_back(info, tree)


@ASYNC
@NEEDS_ROOT
async def test_packages_that_only_pretend_to_be_some_are_listed_as_far_as_they_fit(
    clean: CheckpointEngine,
) -> None:
    session_id = await clean.create()
    await clean.python(
        session_id,
        "import os, sysconfig\n"
        "place = sysconfig.get_path('purelib')\n"
        "for i in range(1500):\n"
        "    os.makedirs(f'{place}/{\"x\" * 200}-{i}.dist-info')\n",
    )
    info = await clean.save(session_id)
    assert 0 < sum(map(len, info.installed_packages)) <= SHOWN_BYTES


def test_more_names_than_a_checkpoint_may_have_are_refused_before_they_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codegen_mcp.engine.checkpoints.scan_levels.MAX_ENTRIES", 50)
    monkeypatch.setattr(bounds, "MAX_ENTRIES", 50)
    for directory in ("one", "one/two"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "file").touch()
        for i in range(30):
            os.link(tmp_path / directory / "file", tmp_path / directory / f"~{i}")
    with pytest.raises(LimitExceeded, match="more than 50 names"):
        list(walk(_open(tmp_path), b"one"))
    table = TreeTable()
    root = _open(tmp_path)
    (seen,) = [one for one in scan(root, b"x", skip={b"one"}) if one.path == b"x"]
    for i in range(50):
        table.add(seen._replace(path=b"x%d" % i))
    with pytest.raises(LimitExceeded, match="more than 50 names"):
        table.add(seen._replace(path=b"y"))
    table.remove(b"x0")
    table.add(seen._replace(path=b"y"))


def test_paths_of_more_bytes_than_a_checkpoint_may_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_NAMES_BYTES", 10_000)
    table = TreeTable()
    (seen,) = scan(_open(tmp_path), b"x")
    for _ in range(3):  # the same names again are no more
        for i in range(9):
            table.add(seen._replace(path=b"%d" % i + b"/" * 999))
    with pytest.raises(LimitExceeded, match="more than 10000 bytes"):
        table.add(seen._replace(path=b"a" * 1001))


def test_a_manifest_that_could_not_be_read_back_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MAX_MANIFEST_BYTES", 100_000)
    roots = [Entry(root, EntryKind.DIRECTORY, 0o700, 0) for root in (b"venv", b"workspace")]
    names = [b"workspace/%03d" % i + b"\xff" * 200 for i in range(100)]
    entries = [*roots, *(Entry(name, EntryKind.FIFO, 0o600, 0) for name in names)]
    encode_manifest(Manifest(f"{SESSION}.1.1", 0, entries[:50]))
    with pytest.raises(LimitExceeded, match="more than 100000 bytes"):
        encode_manifest(Manifest(f"{SESSION}.1.1", 0, entries))


def test_manifests_of_long_paths_are_not_kept_in_memory() -> None:
    kept = RecentManifests()
    path = b"workspace/" + b"a" * 32_000
    long = Manifest(f"{SESSION}.1.1", 0, [Entry(path, EntryKind.FIFO, 0o600, 0)] * 2_000)
    kept.put(long)
    assert kept.get(f"{SESSION}.1.1") is None
    assert len(long.entries) < MOST_ENTRIES


@ASYNC
async def test_facts_that_code_made_long_are_kept_in_memory_as_far_as_they_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "CACHED_BYTES", 25_000)
    kept = catalog.Catalog(MemoryStore())
    ids = [CheckpointId(SESSION, 1, number) for number in range(1, 6)]
    for one in (*ids, ids[-1]):
        info = dataclasses.replace(INFO, checkpoint_id=one, modified_files=["x" * 10_000])
        kept.remember(info)
    assert list(kept._known) == ids[-2:]
    await kept.hide(ids[-1])
    kept.remember(dataclasses.replace(INFO, checkpoint_id=ids[0], env={"A": "x" * 10_000}))
    assert list(kept._known) == [ids[-2], ids[0]]


@ASYNC
@NEEDS_ROOT
async def test_holes_without_end_are_refused_and_those_that_fit_are_kept(
    clean: CheckpointEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_HOLES_BYTES", 64 * MIB)
    session_id = await clean.create()
    await clean.python(session_id, "open('a', 'wb').truncate(48 << 20)")
    tree = clean.tree(session_id)
    info = await clean.save(session_id)
    await clean.comes_back(info, tree)
    await clean.python(session_id, "open('b', 'wb').truncate(48 << 20)")
    with pytest.raises(LimitExceeded, match="holes") as refused:
        await clean.save(session_id)
    assert refused.value.reason == "TOO_MANY_HOLES"


@ASYNC
@NEEDS_ROOT
async def test_a_save_ends_with_the_session_that_is_destroyed(
    clean: CheckpointEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_HOLES_BYTES", 1 << 60)
    session_id = await clean.create(limits=_limits(file_size_bytes=16 * GIB))
    await clean.python(
        session_id, "for i in range(200):\n    open(f'{i}', 'wb').truncate(16 << 30)"
    )
    saving = asyncio.ensure_future(clean.save(session_id))
    drafts = clean.state / "drafts"
    async with asyncio.timeout(10):
        while not list(drafts.iterdir()):
            await asyncio.sleep(0.01)
    await clean.destroy(session_id)
    async with asyncio.timeout(10):
        with pytest.raises(NotFound):
            await saving


@pytest.mark.parametrize("kind", [FanotifyWatch, InotifyWatch])
def test_a_flood_of_events_ends_the_watch_and_not_the_worker(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanotify_watch, "MAX_CHANGES", 5_000)
    monkeypatch.setattr(inotify_reading, "MAX_CHANGES", 5_000)
    monkeypatch.setattr(fanotify_watch, "_is_alone", lambda root: True)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    watch = kind(_open(tmp_path), [b"workspace"])
    try:
        watch.start()
    except OSError as error:
        pytest.skip(f"no {kind.name} here: {error.strerror}")
    try:
        name = workspace / "a"
        name.touch()
        assert not watch.drain().overflow
        for i in range(6_000):
            name = name.rename(workspace / f"{i}")
        assert watch.drain().overflow
        for i in range(6_000):
            name = name.rename(workspace / f"again-{i}")
        descriptors = len(os.listdir("/proc/self/fd"))
        assert watch.drain().overflow  # from now on a second walk takes its place
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        watch.close()


def test_what_many_drains_tell_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_watch, "MAX_CHANGES", 100)
    changes = tree_watch.Changes()
    for i in range(3):
        changes.add(tree_watch.Changes(paths={b"%d/%d" % (i, n) for n in range(40)}))
    assert changes.overflow
    assert not changes.paths
    monkeypatch.setattr(tree_watch, "MAX_CHANGES_BYTES", 1000)
    changes = tree_watch.Changes()
    changes.add(tree_watch.Changes(paths={b"a" * 1001}))
    assert changes.overflow


def test_directories_put_in_the_place_of_others_are_captured_by_a_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_volume(tmp_path / "volume")
    for i in range(40):
        (root / f"workspace/{i}").mkdir()
        (root / f"workspace/{i}/old").write_bytes(b"old")

    def replace_all() -> None:
        for i in range(40):
            (root / f"workspace/{i}/old").unlink()
            (root / f"workspace/{i}").rmdir()
            (root / f"workspace/{i}").mkdir()
            (root / f"workspace/{i}/new").write_bytes(b"new %d" % i)

    monkeypatch.setattr("codegen_mcp.engine.checkpoints.tree_table.MAX_STEPS", 100)
    for steps in ({"rounds": [replace_all]}, {"last": replace_all}):
        shot = capture(root, **steps)
        assert restore(shot, tmp_path / next(iter(steps))) == shot.tree
        for i in range(40):
            (root / f"workspace/{i}/new").rename(root / f"workspace/{i}/old")


@ASYNC
@NEEDS_ROOT
async def test_saves_of_many_sessions_leave_threads_to_everything_else(
    clean: CheckpointEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = set[int](), 0
    real = checkpointer.take

    async def counted(*arguments: Any) -> Any:
        nonlocal most
        under_way.add(id(arguments))
        most = max(most, len(under_way))
        try:
            return await real(*arguments)
        finally:
            under_way.discard(id(arguments))

    monkeypatch.setattr(checkpointer, "take", counted)
    sessions = [await clean.create() for _ in range(6)]
    await asyncio.gather(*map(clean.save, sessions))
    assert most == checkpointer.TAKEN_AT_ONCE


@ASYNC
@NEEDS_ROOT
async def test_checkpoints_leave_the_disk_that_sessions_were_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a disk of its own: what others free on a shared one would be room.
    async with AsyncExitStack() as stack:
        elsewhere = stack.enter_context(state_directory())
        host = stack.enter_context(small_host(elsewhere.parent, 256 * MIB))
        host.chmod(0o711)
        clean = await stack.enter_async_context(checkpoint_engine(host / "state", pool_size=0))
        session_id = await clean.create()
        await clean.python(session_id, "import os; open('a', 'wb').write(os.urandom(24 << 20))")
        spool = clean.engine.checkpoints._spool
        before = clean.objects()
        # Nothing left, too little for the archive, too little for its copy in the store.
        for left in (0, 12 * MIB, 30 * MIB):
            monkeypatch.setattr(spool, "_room", lambda left=left: left)
            with pytest.raises(Full) as refused:
                await clean.save(session_id)
            assert refused.value.reason == "DISK_FULL"
            assert clean.objects() == before
            assert clean.remains() == []
        monkeypatch.setattr(spool, "_room", lambda: 128 * MIB)
        await clean.save(session_id)


@ASYNC
async def test_asking_for_a_session_that_never_was_reads_no_other_ones_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    real = local_files._sorted_names

    def counted(root: int, below: str) -> Any:
        looked.append(below)
        return real(root, below)

    async with LocalStore(tmp_path / "store") as store:
        for number in (1, 2):
            await store.put_bytes(f"{SESSION}/0000000001/{number:010}.json", b"{}")
        (tmp_path / "store/ses_link").symlink_to(tmp_path / "store" / SESSION)
        monkeypatch.setattr(local_files, "_sorted_names", counted)
        for prefix in ("ses_" + "b" * 32, "ses_link", "..", "../..", "a/../..", "", "/etc", "\0"):
            assert [one async for one in store.list(f"{prefix}/")] == []
        assert not looked
        assert len([one async for one in store.list(f"{SESSION}/")]) == 2
        assert looked == [f"{SESSION}/", f"{SESSION}/0000000001/"]


# What was saved must come back.


@ASYNC
@NEEDS_ROOT
@pytest.mark.parametrize(
    ("limits", "code"),
    [
        pytest.param(
            {"open_files": 32}, DEEP.format(depth=120, name=b"d", files=1), id="32 descriptors"
        ),
        pytest.param(
            {"memory_bytes": 32 * MIB},
            "import os\n"
            "deep = '/'.join(['a' * 250] * 4)\n"
            "os.makedirs(deep)\n"
            "open('f', 'w').close()\n"
            "for i in range(13_000):\n"
            "    os.link('f', f'{deep}/{i}')\n",
            id="little memory",
        ),
        pytest.param(
            {"disk_bytes": 72 * MIB, "file_size_bytes": 1 * GIB},
            "import os\n"
            "with open('f', 'wb', buffering=0) as file:\n"
            "    try:\n"
            "        while True:\n"
            "            file.write(b'x' * 4096)\n"
            "            file.seek(4096, 1)\n"
            "    except OSError:\n"
            "        pass\n",
            id="more holes than a map lists, on a full disk",
        ),
        pytest.param(
            {"cpu_millicores": 100, "pids": 4}, "open('f', 'w').write('f')", id="little of anything"
        ),
    ],
)
async def test_what_a_session_could_make_can_be_restored_within_its_limits(
    clean: CheckpointEngine, limits: dict[str, int], code: str
) -> None:
    session_id = await clean.create(limits=_limits(**limits))
    await clean.python(session_id, code)
    restored = await clean.restore(await clean.save(session_id))  # which compares every name
    assert clean.session(restored.session_id).slot.limits == _limits(**limits)
    cgroup = clean.session(restored.session_id).slot.cgroup
    if cgroup is not None and hasattr(cgroup, "_paths"):
        path = Path(cgroup._paths["memory"]) / "memory.limit_in_bytes"
        assert int(path.read_text()) == _limits(**limits).memory_bytes


@ASYNC
@NEEDS_ROOT
async def test_many_calls_revive_a_session_once_and_lose_nothing_of_each_other(
    clean: CheckpointEngine,
) -> None:
    session_id = await clean.create(auto_restore=True)
    await clean.save(session_id)
    await clean.destroy(session_id)

    async def call(number: int) -> str:
        restored = await clean.engine.checkpoints.revive(session_id)
        assert restored is not None
        assert restored.lost
        await clean.python(session_id, f"open('{number}', 'w').close()")
        return str(restored.info.checkpoint_id)

    told = await asyncio.gather(*map(call, range(6)))
    assert set(told) == {f"{session_id}.1.1"}
    listed = await clean.python(session_id, "import os; print(*sorted(os.listdir()))")
    assert listed.split() == [str(number) for number in range(6)]


# Metadata that somebody else wrote.


def _signed(content: dict[str, Any]) -> bytes:
    """Metadata that says of itself that it is whole."""
    content.pop("own_sha256", None)
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**content, "own_sha256": digest}).encode()


INFO = CheckpointInfo(
    checkpoint_id=CheckpointId(SESSION, 1, 3),
    chain=(1, 2, 3),
    sha256="0" * 64,
    manifest_sha256="1" * 64,
)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"limits": {"memory_bytes": float("nan")}}, id="a limit that is no number"),
        pytest.param({"limits": {"timeout_s": float("inf")}}, id="a limit without end"),
        pytest.param({"limits": {"disk_bytes": 1e9}}, id="bytes with a fraction"),
        pytest.param({"limits": {"pids": -1}}, id="a negative limit"),
        pytest.param({"limits": {"pids": 0}}, id="a limit of nothing"),
        pytest.param({"idle_timeout_s": float("nan")}, id="a time that is no number"),
        pytest.param({"freeze_ms": float("inf")}, id="a time without end"),
        pytest.param({"created_at_ms": 10**18}, id="a year that no calendar has"),
        pytest.param({"chain": [*range(1, 3), *[2] * 100_000, 3]}, id="a chain without end"),
        pytest.param({"chain": [2, 1, 3]}, id="a chain in disorder"),
        pytest.param({"chain": [3, 4]}, id="a chain into the future"),
        pytest.param({"sha256": "../../etc/passwd"}, id="a digest that is a path"),
        pytest.param({"checkpoint": f"{SESSION}.1.4"}, id="another checkpoint's"),
        pytest.param({"env": {"A": 1}}, id="a variable that is no text"),
        pytest.param({"auto_restore": 1}, id="a number for a truth"),
        pytest.param({"format": 0}, id="no format"),
    ],
)
def test_hostile_metadata_is_damage_and_nothing_else(changes: dict[str, Any]) -> None:
    content = json.loads(encode_info(INFO))
    assert decode_info(_signed(dict(content)), INFO.checkpoint_id) == INFO
    with pytest.raises(Corrupt) as refused:
        decode_info(_signed({**content, **changes}), INFO.checkpoint_id)
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[" * 1_000_000, id="nested without end"),
        pytest.param(b'{"format": 1, "env": ' + b'{"a":' * 100_000, id="nested inside"),
        pytest.param(b'{"format": ' + b"9" * 5_000 + b"}", id="a number without end"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_metadata_that_is_a_bomb_is_damage(data: bytes) -> None:
    with pytest.raises(Corrupt) as refused:
        decode_info(data, INFO.checkpoint_id)
    assert len(refused.value.message) < 1000


@ASYNC
@NEEDS_ROOT
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"limits": dataclasses.asdict(ResourceLimits(memory_bytes=1 << 50))}, InvalidRequest),
        ({"env": {"A": "\0"}}, InvalidRequest),
        ({"env": {"A=B": "x"}}, InvalidRequest),
        ({"metadata": {"k": "\ud800"}}, InvalidRequest),
        ({"idle_timeout_s": 1e12}, InvalidRequest),
        ({"idle_timeout_s": -5.0}, InvalidRequest),
        ({"checkpoint_interval_s": 1e-9}, InvalidRequest),
        ({"interpreter": "../../bin/sh"}, InvalidRequest),
        ({"durability": "for ever"}, WrongState),
        ({"workspace_id": "x" * 10_000}, InvalidRequest),
    ],
)
async def test_a_restore_asks_for_no_more_than_a_caller_may(
    clean: CheckpointEngine, changes: dict[str, Any], error: type[WorkerError]
) -> None:
    session_id = await clean.create()
    info = await clean.save(session_id)
    stored = clean.object(info, ".json")
    content = json.loads(stored.read_bytes())
    stored.write_bytes(_signed({**content, **changes}))
    clean.engine.checkpoints._catalog._known.clear()
    before = sorted(view.session_id for view in clean.engine.sessions.list())
    with pytest.raises(error):
        await clean.restore(info)
    assert sorted(view.session_id for view in clean.engine.sessions.list()) == before
    await clean.engine.checkpoints.delete(str(info.checkpoint_id))


# Records of tasks that somebody else wrote.

END: dict[str, Any] = {
    "end": "t",
    "tool": "run.python",
    "seq": 1,
    "fp": "0",
    "at": 1,
    "status": 2,
    "metadata": {"ended_by": 1, "start_time_ms": 1, "end_time_ms": 2, "duration_ms": 1},
}
HEAD = b'{"format":1,"last_sequence":1}\n'
RECORDS: dict[str, bytes] = {
    "nested without end": HEAD + b"[" * 100_000 + b"\n",
    "a list": HEAD + b"[]\n",
    "a number": HEAD + b"1\n",
    "an id that ends its quotes": HEAD + json.dumps({**END, "end": 'a","x":"'}).encode() + b"\n",
    "an id that is a path": HEAD + json.dumps({**END, "end": "\0../x"}).encode() + b"\n",
    "a sequence without end": HEAD + json.dumps({**END, "seq": float("inf")}).encode() + b"\n",
    "a sequence that no wire holds": HEAD + json.dumps({**END, "seq": 1 << 70}).encode() + b"\n",
    "a negative sequence": HEAD + json.dumps({**END, "seq": -1}).encode() + b"\n",
    "no output": HEAD + json.dumps({**END, "logged": []}).encode() + b"\n",
    "endless output": HEAD + json.dumps({**END, "logged": [1e400, 1]}).encode() + b"\n",
    "artifacts that are none": HEAD + json.dumps({**END, "artifacts": [{}]}).encode() + b"\n",
    "no status": HEAD + json.dumps({**END, "status": 99}).encode() + b"\n",
    "an error that is none": HEAD + json.dumps({**END, "error": "x"}).encode() + b"\n",
    "a tool with a lone surrogate": HEAD + json.dumps({**END, "tool": "\ud800"}).encode() + b"\n",
    "a head without end": b'{"format":1,"last_sequence":' + b"9" * 400 + b"}\n",
    "a later format": b'{"format":99}\n',
    "no head": b"{}\n",
    "a line that is cut": HEAD + json.dumps(END).encode(),
    "nothing": b"",
}


@ASYNC
@NEEDS_ROOT
async def test_records_that_are_none_are_damage_before_anything_gives_way(
    clean: CheckpointEngine,
) -> None:
    session_id = await clean.create()
    await clean.python(session_id, "open('a', 'w').close()", task_id="t", sequence=1)
    info = await clean.save(session_id)
    stored = clean.object(info, ".json")
    content = json.loads(stored.read_bytes())

    def replace(lines: bytes) -> None:
        data = gzip.compress(lines)
        clean.object(info, ".journal.gz").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        stored.write_bytes(_signed({**content, "journal_sha256": digest}))
        clean.engine.checkpoints._catalog._known.clear()

    await clean.python(session_id, "open('b', 'w').close()")
    for what, lines in RECORDS.items():
        replace(lines)
        for new in (True, False):
            with pytest.raises(Corrupt) as refused:
                await clean.restore(info, new=new)
            assert len(refused.value.message) < 1000, what
        assert len(clean.engine.sessions.list()) == 1, what
    assert await clean.python(session_id, "import os; print(*sorted(os.listdir()))") == "a b\n"
    replace(HEAD + json.dumps(END).encode() + b"\n")
    await clean.restore(info, new=False)
    assert await clean.python(session_id, "import os; print(*os.listdir())") == "a\n"


@ASYNC
@NEEDS_ROOT
async def test_records_on_disk_that_are_none_cost_a_session_nothing_else(
    tmp_path: Path,
) -> None:
    for lines in RECORDS.values():
        (tmp_path / FILE_NAME).write_bytes(lines)
        ledger = TaskLedger(SystemClock())
        recent = ledger.recover(SESSION, tmp_path)
        assert all(isinstance(one, str) for one in recent)
        ledger.close()


# Exported files that somebody else wrote.


Parts = list[tuple[tarfile.TarInfo, bytes]]


def _member(name: str, data: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in changes.items():
        setattr(member, field, value)
    return member, data


def _write(path: Path, parts: Parts) -> None:
    """A tar.gz of these headers and bytes, whatever the headers say."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for member, data in parts:
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.write(data + bytes(-len(data) % 512))
        file.write(bytes(1024))


def _read(path: Path) -> Parts:
    with tarfile.open(path) as archive:
        return [(one, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exported(
    rig: CheckpointEngine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CheckpointInfo]:
    """A file with a chain of two, which are not in the store any more."""
    session_id = await rig.create(env={"TOKEN": "a secret"})
    await rig.python(session_id, "open('a', 'w').write('a')")
    first = await rig.save(session_id)
    await rig.python(session_id, "open('b', 'w').write('b')")
    info = await rig.save(session_id, incremental=True)
    path = tmp_path_factory.mktemp("exported") / "exported.tar.gz"
    await rig.engine.checkpoints.export(str(info.checkpoint_id), path)
    await rig.destroy(session_id)
    for one in (info, first):
        await rig.engine.checkpoints.delete(str(one.checkpoint_id))
    return path, info


async def _refused(rig: CheckpointEngine, path: Path, error: type[WorkerError], match: str) -> None:
    before = rig.objects()
    with pytest.raises(error, match=match):
        await rig.engine.checkpoints.import_(path)
    assert rig.objects() == before
    assert rig.remains() == []


@ASYNC
@NEEDS_ROOT
async def test_an_exported_file_is_for_its_owner_alone(
    rig: CheckpointEngine, exported: tuple[Path, CheckpointInfo]
) -> None:
    path, info = exported
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert any(b"a secret" in data for _, data in _read(path))
    assert await rig.engine.checkpoints.import_(path) == info  # it is fine as it is
    await rig.engine.checkpoints.delete(str(info.checkpoint_id))


KEY = f"{SESSION}/0000000001/0000000001"


@ASYNC
@NEEDS_ROOT
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([_member("/etc/cron.d/x", b"x")], id="an absolute name"),
        pytest.param([_member(f"../{KEY}.json", b"x")], id="a name that leads out"),
        pytest.param([_member(f"{KEY}.json/../../x", b"x")], id="a name that leads out later"),
        pytest.param([_member(f"{SESSION}/1/1.json", b"x")], id="another spelling of a key"),
        pytest.param([_member(f"{KEY}.deleted")], id="a tombstone"),
        pytest.param([_member("artifacts/x/art_1.json", b"{}")], id="an artifact"),
        pytest.param(
            [_member(f"{KEY}.json", type=tarfile.SYMTYPE, linkname="/etc/shadow")], id="a link"
        ),
        pytest.param(
            [_member(f"{KEY}.json", type=tarfile.LNKTYPE, linkname="/etc/shadow")], id="a hard link"
        ),
        pytest.param([_member(f"{KEY}.json", type=tarfile.CHRTYPE)], id="a device"),
        pytest.param([_member(f"{KEY}.json", type=tarfile.FIFOTYPE)], id="a pipe"),
        pytest.param(
            [_member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=8**11 - 1)],
            id="a name of gigabytes",
        ),
        pytest.param([_member("pax", type=tarfile.XHDTYPE, size=8**11 - 1)], id="a long record"),
        pytest.param(
            [_member(f"{KEY}.tar.gz", type=tarfile.GNUTYPE_SPARSE, size=0)], id="a file of holes"
        ),
        pytest.param([_member(f"{KEY}.json", b"{}"), _member(f"{KEY}.json", b"{}")], id="twice"),
        pytest.param([_member(f"{KEY}.json", size=1 << 40)], id="endless metadata"),
        pytest.param([_member(f"{KEY}.manifest.gz", size=1 << 40)], id="an endless manifest"),
        pytest.param(
            [_member(f"{SESSION}/0000000001/{i:010}.json", b"{}") for i in range(1, 300)],
            id="members without end",
        ),
    ],
)
async def test_a_file_with_anything_but_objects_of_ours_is_refused_before_it_is_read(
    rig: CheckpointEngine, tmp_path: Path, parts: Parts
) -> None:
    path = tmp_path / "hostile.tar.gz"
    _write(path, parts)
    await _refused(rig, path, Corrupt, "holds")


@ASYNC
@NEEDS_ROOT
async def test_an_import_leaves_room_on_the_disk(rig: CheckpointEngine, tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar.gz"
    _write(path, [_member(f"{KEY}.tar.gz", size=1 << 60)])
    await _refused(rig, path, Full, "no room")


@ASYNC
@NEEDS_ROOT
@pytest.mark.parametrize(
    "changes",
    [{"size_bytes": 1}, {"inflated_bytes": 1 << 40}, {"chain": [2]}, {"sha256": "0" * 64}],
)
async def test_a_file_whose_metadata_lies_is_refused(
    rig: CheckpointEngine,
    exported: tuple[Path, CheckpointInfo],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    source, info = exported
    path = tmp_path / "hostile.tar.gz"
    parts = []
    for member, data in _read(source):
        if member.name == f"{info.checkpoint_id.key}.json":
            data = _signed({**json.loads(data), **changes})
        parts.append(_member(member.name, data))
    _write(path, parts)
    await _refused(rig, path, Corrupt, "in the file|does not hold|sha256")


@ASYNC
@NEEDS_ROOT
async def test_a_chain_whose_archives_do_not_fit_together_is_refused(
    rig: CheckpointEngine, exported: tuple[Path, CheckpointInfo], tmp_path: Path
) -> None:
    source, info = exported
    other = await rig.create()
    await rig.python(other, "open('a', 'w').write('another')")
    older = await rig.save(other)
    stranger = tmp_path / "other.tar.gz"
    await rig.engine.checkpoints.export(str(older.checkpoint_id), stranger)
    await rig.destroy(other)
    session_id = info.checkpoint_id.session_id
    first = {member.name.partition(".")[2]: data for member, data in _read(stranger)}
    lines = gzip.decompress(first["manifest.gz"]).replace(other.encode(), session_id.encode())
    first["manifest.gz"] = gzip.compress(lines)
    content = json.loads(first["json"])
    content["checkpoint"] = f"{session_id}.1.1"
    content["manifest_sha256"] = hashlib.sha256(first["manifest.gz"]).hexdigest()
    first["json"] = _signed(content)
    parts = [
        _member(f"{session_id}/0000000001/0000000001.{suffix}", data)
        for suffix, data in first.items()
    ]
    parts += [_member(one.name, data) for one, data in _read(source) if "0000000002." in one.name]
    path = tmp_path / "hostile.tar.gz"
    _write(path, parts)
    await _refused(rig, path, Corrupt, "no archive in it holds")


def _open(path: Path) -> int:
    """A descriptor that lives as long as the process: these tests are few."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _limits(**changes: int) -> ResourceLimits:
    values = {"disk_bytes": 64 * MIB, "memory_bytes": 128 * MIB, **changes}
    return ResourceLimits(**values)
