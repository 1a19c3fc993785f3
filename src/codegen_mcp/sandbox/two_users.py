"""A user namespace with two host users: the session's, called 1000, and the guest's, called 0.

Only a worker that is root can make one: it writes the map (user_namespaces(7)). The namespace is
owned by the guest's user, so that a launcher of that user may enter it; no user of it is root
outside.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.launcher import PLAIN_ENVIRONMENT, Spawner, outlast

_SAID = b"up\n"
_TIMEOUT_S = 10.0


async def make_namespace(
    spawner: Spawner, *, guest: HostIdentity, session: HostIdentity, called: int
) -> int:
    """Return a descriptor of a new one; the caller closes it.

    Args:
        spawner: Starts the helper that makes it, and is gone when this returns.
        guest: Is 0 inside.
        session: Is ``called`` inside.
        called: See above.

    Raises:
        SandboxUnavailable: The kernel refuses.
    """
    stay, go = os.pipe2(os.O_CLOEXEC)
    said, say = os.pipe2(os.O_CLOEXEC)
    argv = ["/usr/bin/setpriv", "--reuid", str(guest.uid), "--regid", str(guest.gid)]
    argv += ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--", "/usr/bin/unshare"]
    argv += ["--user", "--", "/bin/sh", "-c", "echo up >&2; read -r word"]
    try:
        spawning = spawner.spawn(argv, pass_fds=(), stderr=say, stdin=stay, env=PLAIN_ENVIRONMENT)
        cancelled = await outlast(spawning)
        os.close(say)
        say = -1
        process = spawning.result()
        try:
            answer = b"" if cancelled else await _read(said)
            if answer != _SAID:
                raise SandboxUnavailable(f"no user namespace for two: {answer[:300].decode()!r}")
            proc = Path(f"/proc/{process.pid}")
            for name, own, other in (
                ("uid_map", guest.uid, session.uid),
                ("gid_map", guest.gid, session.gid),
            ):
                (proc / name).write_text(f"0 {own} 1\n{called} {other} 1\n")
            return os.open(proc / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(go)
            go = -1
            process.kill()
            process.wait()
            if cancelled:
                raise asyncio.CancelledError
    except OSError as error:
        raise SandboxUnavailable(f"no user namespace for two: {error}") from error
    finally:
        for fd in (stay, go, said, say):
            if fd >= 0:
                os.close(fd)


async def _read(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await readable.wait()
        return os.read(fd, 4096)
    except TimeoutError:
        return b""
    finally:
        loop.remove_reader(fd)
