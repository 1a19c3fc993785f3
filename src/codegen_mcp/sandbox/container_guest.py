"""A guest in a container: it connects to the worker, which then knows its process and drives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox import seccomp
from codegen_mcp.sandbox.base import WORKSPACE, HostIdentity, SandboxSpec
from codegen_mcp.sandbox.container_api import ContainerApi
from codegen_mcp.sandbox.container_spec import SOCKET
from codegen_mcp.sandbox.launched import END_TIMEOUT_S
from codegen_mcp.sandbox.launcher import descendants, ended

CONNECT_TIMEOUT_S = 30.0
"""From the start of the container to the guest's word; an engine takes a second or two."""
_REMOVE_TRIES, _REMOVE_WAIT_S = 10, 0.2
_CREDENTIALS = struct.Struct("3i")


class Entrance:
    """The socket that one guest may connect to, in a directory that only its container sees.

    Args:
        directory: Made here, removed when closed.
        user: Who may connect.
    """

    def __init__(self, directory: Path, user: HostIdentity) -> None:
        self.directory = directory
        self._user = user
        directory.mkdir(mode=0o711)
        os.chmod(directory, 0o711)
        path = directory / SOCKET
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(1)
        os.chmod(path, 0o600)
        if os.geteuid() == 0:
            os.chown(path, user.uid, user.gid)

    async def accept(self) -> tuple[socket.socket, int]:
        """Return the guest's connection and its host pid, as the kernel says (unix(7)).

        Raises:
            SandboxUnavailable: Another user connected, or a process of another machine.
        """
        connection, _ = await _accept(self._listener)
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        if pid <= 0 or uid != self._user.uid:
            connection.close()
            raise SandboxUnavailable(
                f"the container's guest is process {pid} of user {uid}, not of {self._user.uid}: "
                "engine and worker must run on one kernel, without another user mapping"
            )
        return connection, pid

    def close(self) -> None:
        """Nobody connects any more. Idempotent."""
        self._listener.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class ContainerGuest:
    """Implements ``GuestProcess`` over a connected guest."""

    def __init__(
        self,
        connection: socket.socket,
        pid: int,
        spec: SandboxSpec,
        api: ContainerApi,
        container_id: str,
    ) -> None:
        self._control = connection
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._spec = spec
        self._api = api
        self._id = container_id
        self._over = False
        self._ending = asyncio.Lock()

    @property
    def control(self) -> socket.socket:
        """Worker's end of the control socket."""
        return self._control

    @property
    def guest_pid(self) -> int:
        """Host pid of the container's init."""
        return self._pid

    async def admit(self) -> None:
        """Put the waiting guest into the session's control group, and let it go on, filtered.

        Raises:
            SandboxUnavailable: It sees other files than the worker, or no group can be had.
        """
        self._check_files()
        if self._spec.cgroup is not None:
            try:
                await asyncio.to_thread(self._attach)
            except OSError as error:
                raise SandboxUnavailable(
                    f"the container cannot be put into a control group of ours: {error}"
                ) from error
        self._control.send(b"g" + seccomp.build())

    def _check_files(self) -> None:
        """An engine outside of the worker's mount namespace would bind what lies below a mount."""
        own = os.stat(self._spec.volume.root / "workspace")
        try:
            its = os.stat(f"/proc/{self._pid}/root{WORKSPACE}")
        except OSError as error:
            raise SandboxUnavailable(f"the container's files cannot be seen: {error}") from error
        if (own.st_dev, own.st_ino) != (its.st_dev, its.st_ino):
            raise SandboxUnavailable(
                "the container engine sees other mounts than this worker; set PRIVATE_MOUNTS=false "
                "(or let the worker start podman itself: stop the engine's own service)"
            )

    def processes(self) -> list[int]:
        """Host pids inside."""
        if self._over:
            return []
        known = set(self._spec.cgroup.pids()) if self._spec.cgroup is not None else set()
        return sorted(known or {self._pid, *descendants(self._pid)})

    def kill(self) -> None:
        """SIGKILL the container's init, which takes everything in it along."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> None:
        """Return when nothing is left, the engine's record included.

        Raises:
            SandboxUnavailable: Something still lives after 10 s.
        """
        async with self._ending:
            if self._over:
                return
            if not await ended(self._pidfd, END_TIMEOUT_S):
                raise SandboxUnavailable(f"the container's process {self._pid} does not end")
            self._over = True
            os.close(self._pidfd)
            self._pidfd = -1
            self._control.close()
            await remove(self._api, self._id)

    def _attach(self) -> None:
        assert self._spec.cgroup is not None
        for path in self._spec.cgroup.attach_files:
            path.write_text(str(self._pid))


async def remove(api: ContainerApi, container_id: str) -> None:
    """Remove a container, running or not; one that is gone is fine.

    An engine refuses while the end of a container is just being noticed. What cannot be removed is
    left for the next start on this state directory: nothing runs in it.
    """
    for _ in range(_REMOVE_TRIES):
        with contextlib.suppress(SandboxUnavailable):
            await api.call("DELETE", f"/containers/{container_id}", {"force": "true", "v": "true"})
            return
        await asyncio.sleep(_REMOVE_WAIT_S)


async def _accept(listener: socket.socket) -> tuple[socket.socket, object]:
    loop = asyncio.get_running_loop()
    connection, address = await loop.sock_accept(listener)
    connection.setblocking(False)
    return connection, address
