"""What the guest says is hostile input: it is parsed strictly, and a liar loses its sandbox."""

import array
import asyncio
import contextlib
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.guest.codec import decode, encode
from codegen_mcp.sandbox.guest_link import GuestLink
from codegen_mcp.sandbox.guest_protocol import (
    Exited,
    Failed,
    Gone,
    GuestProtocolError,
    NewSpare,
    Ready,
    guest_argv,
    needs_fresh_interpreter,
    parse_reply,
)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_lists_of_bytes_come_back_as_they_went(items):
    assert decode(encode(items)) == items


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.data())
def test_a_cut_list_is_refused_or_a_shorter_list(items, data):
    whole = encode(items)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with contextlib.suppress(ValueError):
        assert decode(cut) == items[: len(decode(cut))]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_reply_or_an_error_of_ours(datagram):
    try:
        reply = parse_reply(datagram)
    except GuestProtocolError:
        return
    assert isinstance(reply, Ready | NewSpare | Exited | Gone | Failed)


@given(
    st.sampled_from([b"spare", b"exit", b"gone", b"failed", b"ready", b"x"]),
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.integers(-(2**70), 2**70).map(lambda number: str(number).encode()),
        ),
        max_size=4,
    ),
)
def test_numbers_are_whole_and_within_bounds(kind, rest):
    try:
        reply = parse_reply(encode([kind, *rest]))
    except GuestProtocolError:
        return
    if isinstance(reply, Exited):
        assert 0 <= reply.wait_status <= 0xFFFF
        assert 0 <= reply.leftovers <= 2**22


def test_what_ours_says_is_understood():
    assert parse_reply(encode([b"ready"])) == Ready()
    assert parse_reply(encode([b"spare", b"7"])) == NewSpare(7)
    assert parse_reply(encode([b"spare", b"7", b"12"])) == NewSpare(7, 12)
    assert parse_reply(encode([b"exit", b"7", b"256", b"3"])) == Exited(7, 256, 3)
    assert parse_reply(encode([b"gone", b"7", b"9"])) == Gone(7, 9)
    assert parse_reply(encode([b"failed", b"no memory"])) == Failed("no memory")


@pytest.mark.parametrize(
    ("env", "fresh"),
    [
        ({}, False),
        ({"FOO": "1", "MY_PYTHON": "1"}, False),
        ({"PYTHONPATH": "x"}, True),
        ({"LD_PRELOAD": "x"}, True),
        ({"OMP_NUM_THREADS": "1"}, True),
        ({"LANG": "C"}, True),
        ({"TZ": "UTC"}, True),
        ({"MPLBACKEND": "agg"}, True),
    ],
)
def test_variables_that_an_interpreter_reads_at_its_start_force_a_new_one(env, fresh):
    assert needs_fresh_interpreter(env) is fresh


def test_nothing_secret_is_on_the_guest_s_command_line():
    argv = guest_argv(
        control_fd=5, site_packages="lib/python3.11/site-packages", env={"HOME": "/workspace"}
    )
    assert argv[2:] == [
        "5",
        "/workspace",
        "/venv",
        "lib/python3.11/site-packages",
        "--init",
        "--warm-mib",
        "192",
        "--env",
        "HOME=/workspace",
    ]


class FakeProcess:
    """Stands where a launched guest does: a socket, and whether it was killed."""

    def __init__(self) -> None:
        self.control, self.guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self.guest_pid = 0
        self.killed = False

    def processes(self) -> list[int]:
        return []

    def kill(self) -> None:
        self.killed = True

    async def wait(self) -> None:
        return None

    def say(self, items: list[bytes], fd: int | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd else []
        self.guest.sendmsg([encode(items)], rights)

    def close(self) -> None:
        self.control.close()
        self.guest.close()


async def linked(process: FakeProcess) -> tuple[GuestLink, list[Exited | None]]:
    ended: list[Exited | None] = []
    return GuestLink(process, ended.append), ended


async def test_a_run_goes_to_the_newest_spare_with_its_descriptors():
    process = FakeProcess()
    link, _ = await linked(process)
    for number in (1, 2):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process.say([b"spare", b"%d" % number], theirs.fileno())
        theirs.close()
        if number == 1:
            old = ours
    assert await asyncio.to_thread(old.recv, 10) == b""  # it is told that it is not needed
    await link.wait_for_spare(5)
    read_end, write_end = os.pipe()
    assert await link.send_run(b"payload", [write_end]) == 2
    data, fds, _, _ = socket.recv_fds(ours, 1000, 4)
    assert decode(data) == [b"payload"]
    os.write(fds[0], b"through")
    assert os.read(read_end, 10) == b"through"
    link.close()
    for fd in (*fds, read_end, write_end):
        os.close(fd)
    ours.close()
    old.close()
    process.close()


@pytest.mark.parametrize(
    "lie",
    [[b"spare", b"1"], [b"nonsense"], [b"exit", b"1", b"99999999", b"0"], [b"exit", b"-1"]],
)
async def test_a_guest_that_says_what_ours_would_not_is_killed(lie):
    process = FakeProcess()
    link, ended = await linked(process)
    process.say(lie)
    with pytest.raises(SandboxUnavailable):
        await link.wait_for_spare(5)
    assert process.killed
    assert ended == [None]
    assert not link.alive
    process.close()


async def test_a_descriptor_that_is_no_socket_is_not_taken_for_a_spare():
    process = FakeProcess()
    link, _ = await linked(process)
    read_end, write_end = os.pipe()
    process.say([b"spare", b"1"], write_end)
    with pytest.raises(SandboxUnavailable):
        await link.wait_for_spare(5)
    assert process.killed
    link.close()
    for fd in (read_end, write_end):
        os.close(fd)
    process.close()


async def test_a_guest_that_makes_no_spare_in_time_is_killed():
    process = FakeProcess()
    link, _ = await linked(process)
    with pytest.raises(SandboxUnavailable, match="no spare"):
        await link.wait_for_spare(0.05)
    assert process.killed
    process.close()


async def test_a_guest_that_is_gone_ends_the_run():
    process = FakeProcess()
    link, ended = await linked(process)
    process.guest.close()
    with pytest.raises(SandboxUnavailable):
        await link.wait_for_spare(5)
    assert ended == [None]
    process.close()
