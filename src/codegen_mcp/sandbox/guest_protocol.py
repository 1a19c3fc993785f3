"""How the worker launches and talks to the guest; what the guest says is hostile input.

Launch contract (what a backend does)::

    guest_argv(...) = TEMPLATE/bin/python GUEST/main.py FD WORKSPACE VENV SITE [flags]

    FD     inherited descriptor: the guest's end of a SOCK_SEQPACKET pair
    SITE   site-packages relative to VENV
    flags  --init          it is PID 1 of a PID namespace
           --own-uid       no namespace, but no other process has its uid: kill(-1) is safe
           --no-proc       /proc is not that of its own namespace
           --run-as U:C:G  code of the session is user (and group) U, and calls itself C; the guest
                           becomes G; it has CAP_SETUID, SETGID, SETPCAP and KILL
           --relay         it cannot send descriptors (gVisor): see ``run`` below
           --warm-mib N    largest warm parent; 0 is none
           --egress PORT   bind this port on loopback and send it along with ready
           --env K=V ...   what most runs will have as environment; comes last
    env    GUEST_ENV, nothing else; stdin, stdout, stderr on /dev/null; cwd anywhere

Messages are lists of byte strings (``guest/codec.py``), one a datagram:

    guest -> worker   ready                    with the bound port, where --egress asks for it
                      spare N                  with the socket over which that spare takes a run
                      exit N WAIT_STATUS LEFTOVERS
                      gone N WAIT_STATUS       it ended before any code of the session ran in it
                      failed TEXT              no spare can be made
    worker -> guest   kill N                   end that run
                      changed                  site-packages changed: drop warm imports
                      drop                     memory is short: drop warm imports
                      run N PAYLOAD            with --relay, in place of the message to the spare,
                                               and with the same descriptors
    worker -> spare   PAYLOAD                  with descriptors stdout, stderr, stdin; a payload
                                               that is too long is empty here, and a fourth one

A newer spare takes the place of the one before; the end of a run takes every spare that was
announced until then.

The payload is the tuple (kind, name, cwd, args, env, limits, fresh, code) in ``marshal``'s version
2, which every Python 3 reads: of all decoders only that one is written in C and loaded anyway. It
only ever travels from the worker to a spare.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codegen_mcp.sandbox.base import GUEST, TEMPLATE, VENV, WORKSPACE
from codegen_mcp.sandbox.guest.codec import decode

GUEST_ENV: Mapping[str, str] = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
"""The guest's whole environment. LANG is that of every run: a fork keeps its interpreter's."""

MARSHAL_VERSION = 2
MAX_DATAGRAM = 64 * 1024
INLINE_PAYLOAD = 32 * 1024
"""What is longer travels in a memfd."""

FRESH_PREFIXES = ("PYTHON", "LD_", "OMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "LC_", "MALLOC_")
FRESH_NAMES = frozenset(
    {"LANG", "LANGUAGE", "TZ", "MPLBACKEND", "GLIBC_TUNABLES", "BLIS_NUM_THREADS"}
)
"""Variables that an interpreter or library reads when it starts: setting one forces a new one."""


class GuestProtocolError(Exception):
    """The guest sent what no guest of ours sends."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The guest is up."""


@dataclass(frozen=True, slots=True)
class NewSpare:
    """A spare waits for a run; its socket came along where the guest can send one."""

    number: int
    pid: int = 0
    """Its process id inside; 0 where the host has no process for it."""


@dataclass(frozen=True, slots=True)
class Exited:
    """A run is over and nothing of it is left."""

    number: int
    wait_status: int
    leftovers: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A spare ended that had not become a run, though one may have been sent to it."""

    number: int
    wait_status: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The guest cannot make a spare."""

    text: str


Reply = Ready | NewSpare | Exited | Gone | Failed


def guest_argv(
    *,
    control_fd: int,
    site_packages: str,
    python: str = TEMPLATE + "/bin/python",
    guest: str = GUEST,
    workspace: str = WORKSPACE,
    venv: str = VENV,
    init: bool = True,
    own_uid: bool = False,
    proc: bool = True,
    run_as: tuple[int, int, int] | None = None,
    relay: bool = False,
    warm_mib: int = 192,
    egress_port: int = 0,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the argument vector that starts the guest; see the launch contract above."""
    argv = [python, f"{guest}/main.py", str(control_fd), workspace, venv, site_packages]
    argv += ["--init"] if init else []
    argv += ["--own-uid"] if own_uid else []
    argv += [] if proc else ["--no-proc"]
    argv += ["--run-as", "{}:{}:{}".format(*run_as)] if run_as else []
    argv += ["--relay"] if relay else []
    argv += ["--warm-mib", str(warm_mib)]
    argv += ["--egress", str(egress_port)] if egress_port else []
    return [*argv, "--env", *(f"{name}={value}" for name, value in (env or {}).items())]


def needs_fresh_interpreter(env: Mapping[str, str]) -> bool:
    """Whether variables that a caller set are read at an interpreter's start."""
    return any(name in FRESH_NAMES or name.startswith(FRESH_PREFIXES) for name in env)


def encode_payload(
    *,
    kind: str,
    name: str,
    cwd: str,
    args: Sequence[str],
    env: Mapping[str, str],
    limits: Mapping[str, int],
    fresh: bool,
    code: bytes = b"",
) -> bytes:
    """Encode a run.

    Args:
        kind: ``code``, ``file`` or ``exec``.
        name: Shown file name of code, path of a file (relative to cwd or absolute); else empty.
        cwd: Absolute, as the sandbox sees it.
        args: What follows argv[0]; for ``exec`` the whole vector.
        env: The whole environment.
        limits: rlimit name without ``RLIMIT_`` to value, soft and hard.
        fresh: Start a new interpreter instead of using the forked one.
        code: Source text.
    """
    return marshal.dumps(
        (
            kind.encode(),
            os.fsencode(name),
            os.fsencode(cwd),
            [os.fsencode(arg) for arg in args],
            {os.fsencode(key): os.fsencode(value) for key, value in env.items()},
            dict(limits),
            fresh,
            code,
        ),
        MARSHAL_VERSION,
    )


def parse_reply(datagram: bytes) -> Reply:
    """Parse what the guest said.

    Raises:
        GuestProtocolError: It is not one of the messages above, or a number is out of range.
    """
    try:
        message = decode(datagram)
    except ValueError as error:
        raise GuestProtocolError(f"not a message: {error}") from None
    match message:
        case [b"ready"]:
            return Ready()
        case [b"spare", number]:
            return NewSpare(_number(number, 2**62))
        case [b"spare", number, pid]:
            return NewSpare(_number(number, 2**62), _number(pid, 2**22))
        case [b"exit", number, status, leftovers]:
            return Exited(
                _number(number, 2**62),
                _number(status, 0xFFFF),
                min(_number(leftovers, 2**31), 2**22),
            )
        case [b"gone", number, status]:
            return Gone(_number(number, 2**62), _number(status, 0xFFFF))
        case [b"failed", text]:
            return Failed(text[:500].decode("utf-8", "replace"))
    raise GuestProtocolError(f"unknown message of {len(message)} parts")


def _number(text: bytes, largest: int) -> int:
    if not 0 < len(text) <= 19 or not text.isdigit():
        raise GuestProtocolError("not a number")
    value = int(text)
    if value > largest:
        raise GuestProtocolError("number out of range")
    return value
