"""Host users are leased to one session of one worker at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Full, InvalidRequest, Unavailable
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.host_processes import live_uids
from codegen_mcp.sandbox.identity import BLOCK, OwnUser, UidLeases, UidRange

FIRST = 3_000_064
"""Not at a block's edge, and nobody else's in tests."""
RANGE = UidRange(FIRST, FIRST + 3 * BLOCK - 1)


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[UidLeases]:
    made = UidLeases(RANGE, "a" * 16, tmp_path)
    yield made
    made.close()


def other_worker(tmp_path: Path, token: str = "b" * 16) -> UidLeases:
    return UidLeases(RANGE, token, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "200000", "200000-", "5-10", "0-65535", "300-200", "1000-9999999", "x-y"]
)
def test_a_malformed_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidRequest, match="UID_RANGE"):
        UidRange.parse(text)


def test_a_range_is_read() -> None:
    assert UidRange.parse(" 200000-265535 ") == UidRange(200_000, 265_535)


def test_no_two_sessions_have_the_same_user(leases: UidLeases) -> None:
    found = [leases.lease() for _ in range(2 * BLOCK)]
    assert len({identity.uid for identity in found}) == 2 * BLOCK
    assert all(identity.uid == identity.gid for identity in found)
    assert all(RANGE.first <= identity.uid <= RANGE.last for identity in found)


def test_two_workers_never_share_a_user(leases: UidLeases, tmp_path: Path) -> None:
    other = other_worker(tmp_path)
    try:
        mine = {leases.lease().uid for _ in range(BLOCK)}
        theirs = {other.lease().uid for _ in range(BLOCK)}
        assert not mine & theirs
        for uid in mine:
            assert not other.claim(HostIdentity(uid=uid, gid=uid))
    finally:
        other.close()


def test_the_worker_takes_none_for_itself_that_its_sessions_had(
    leases: UidLeases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [leases.lease(own=True) for _ in range(3)]
    session = leases.lease()
    leases.close()
    # What ran as the worker's own users is not quite gone when the next one starts.
    monkeypatch.setattr(
        "codegen_mcp.sandbox.identity.live_uids", lambda: {identity.uid for identity in own}
    )
    following = other_worker(tmp_path, "a" * 16)
    try:
        following.reclaim()
        for _ in range(3):
            following.lease(own=True)
        assert following.claim(session)
    finally:
        following.close()


def test_when_all_are_leased_the_worker_is_full(leases: UidLeases) -> None:
    for _ in range(leases.capacity):
        leases.lease()
    with pytest.raises(Full) as caught:
        leases.lease()
    assert caught.value.retry_after_s


def test_one_that_was_given_back_is_leased_again_but_last(leases: UidLeases) -> None:
    first = leases.lease()
    asyncio.run(leases.release(first))
    others = {leases.lease().uid for _ in range(leases.capacity - 1)}
    assert first.uid not in others
    assert leases.lease() == first


@pytest.mark.skipif(os.geteuid() != 0, reason="running as another user needs root")
def test_one_with_a_living_process_is_not_leased_again(leases: UidLeases) -> None:
    identities = [leases.lease() for _ in range(leases.capacity)]
    busy = identities[0].uid
    argv = ["/bin/cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, user=busy, group=busy) as process:
        assert busy in live_uids()
        asyncio.run(leases.release(identities[0]))
        with pytest.raises(Full):
            leases.lease()
        process.kill()
    assert leases.lease() == identities[0]


def test_an_adopted_session_gets_its_very_user_back(leases: UidLeases, tmp_path: Path) -> None:
    identity = leases.lease()
    leases.close()
    following = other_worker(tmp_path, "a" * 16)
    try:
        assert following.claim(identity)
        assert not following.claim(identity)
        rest = {following.lease().uid for _ in range(following.capacity - 1)}
        assert identity.uid not in rest
    finally:
        following.close()


def test_a_user_outside_the_range_is_not_claimed(leases: UidLeases) -> None:
    assert not leases.claim(HostIdentity(uid=12345, gid=12345))
    assert not leases.claim(HostIdentity(uid=FIRST, gid=FIRST + 1))


def test_the_next_worker_of_a_directory_takes_over_its_users(
    leases: UidLeases, tmp_path: Path
) -> None:
    used = leases.lease()
    stranger = other_worker(tmp_path)
    theirs = stranger.lease()
    leases.close()
    following = other_worker(tmp_path, "a" * 16)
    try:
        found = following.reclaim()
        assert used.uid in found
        assert theirs.uid not in found
    finally:
        following.close()
        stranger.close()


def test_users_of_a_dead_worker_are_left_to_its_directory_while_others_are_free(
    leases: UidLeases, tmp_path: Path
) -> None:
    used = leases.lease()
    leases.close()
    stranger = other_worker(tmp_path)
    try:
        block = {stranger.lease().uid for _ in range(BLOCK)}
        assert used.uid not in block
    finally:
        stranger.close()


def test_a_lease_ends_with_the_process(leases: UidLeases, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from codegen_mcp.sandbox.identity import UidLeases, UidRange\n"
        f"leases = UidLeases(UidRange({RANGE.first}, {RANGE.last}), 'c' * 16, Path(sys.argv[1]))\n"
        "print(leases.lease().uid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    uid = int(done.stdout)
    assert leases.claim(HostIdentity(uid=uid, gid=uid))


def test_users_of_the_host_are_never_leased(tmp_path: Path) -> None:
    listed = UidLeases(UidRange(65_400, 65_599), "a" * 16, tmp_path)
    try:
        found = {listed.lease().uid for _ in range(listed.capacity)}
        assert 65_534 not in found
        assert listed.capacity < 200
    finally:
        listed.close()


def test_a_range_that_is_not_mapped_is_unavailable(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from codegen_mcp.core.errors import Unavailable\n"
        "from codegen_mcp.sandbox.identity import UidLeases, UidRange\n"
        "try:\n"
        "    UidLeases(UidRange.parse('200000-265535'), 'a' * 16, Path(sys.argv[1]))\n"
        "except Unavailable as error: print(error)\n"
    )
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"user namespaces: {done.stderr.strip()}")
    assert "not mapped" in done.stdout


def test_a_directory_that_nobody_may_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr("codegen_mcp.sandbox.identity.DIRECTORIES", (blocked / "below",))
    with pytest.raises(Unavailable, match="below"):
        UidLeases(RANGE, "a" * 16)


def test_a_worker_that_is_not_root_leases_nobody() -> None:
    own = OwnUser()
    own.lease()
    assert not own.claim(HostIdentity(uid=1000, gid=1000))
    asyncio.run(own.release(HostIdentity(uid=1000, gid=1000)))
