"""The worker's end of the guest's control socket, and the spare that waits behind it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.entrance import take_entrance
from codegen_mcp.sandbox.guest.codec import encode
from codegen_mcp.sandbox.guest_protocol import (
    MAX_DATAGRAM,
    Exited,
    Failed,
    Gone,
    GuestProtocolError,
    NewSpare,
    Ready,
    Reply,
    parse_reply,
)
from codegen_mcp.sandbox.launch import GuestProcess

BOOT_S = 15.0
"""Longest time from launch to the first spare."""
SPARE_S = 5.0
"""Longest wait for the guest to fork another."""
SPARE_TRIES = 3


class GuestLink:
    """Listens to one guest from its launch to its end.

    Args:
        process: The launched guest.
        ended: Called when a run is over, and with None when the guest is gone.
        egress_port: Of the entrance that comes with ready; 0: there is none.
        relay: Runs go to spares through the guest, which cannot send their sockets.
        on_spare: Called with the number of a new spare and its process id inside.
    """

    def __init__(
        self,
        process: GuestProcess,
        ended: Callable[[Exited | None], None],
        *,
        egress_port: int = 0,
        relay: bool = False,
        on_spare: Callable[[int, int], None] | None = None,
    ) -> None:
        self._process = process
        self._on_spare = on_spare
        self._relay = relay
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._spare: tuple[int, socket.socket | None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.alive = True
        self.entrance: socket.socket | None = None
        """Bound for the way out; see ``Sandbox.entrance``."""
        self._egress_port = egress_port
        self._loop.add_reader(process.control, self._on_readable)

    async def wait_for_spare(self, seconds: float) -> None:
        """Wait until a run can be sent.

        Raises:
            SandboxUnavailable: The guest ended, or made none in time (then it is killed).
        """
        if self._spare is None and self.alive:
            self._waiter = self._loop.create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._waiter
            except TimeoutError:
                self._process.kill()
                self.close()
                raise SandboxUnavailable(f"the guest made no spare in {seconds:.0f} s") from None
            finally:
                self._waiter = None
        if self._spare is None:
            raise SandboxUnavailable("the guest has ended; the session needs a new sandbox")

    async def send_run(self, payload: bytes, fds: list[int]) -> int:
        """Give a run to the waiting spare; returns its number.

        Raises:
            SandboxUnavailable: There is none and none is coming.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        for _ in range(SPARE_TRIES):
            await self.wait_for_spare(SPARE_S)
            assert self._spare is not None
            (number, channel), self._spare = self._spare, None
            words = [payload] if channel else [b"run", b"%d" % number, payload]
            with channel or contextlib.nullcontext(self._process.control) as way:
                try:
                    way.sendmsg([encode(words)], rights, socket.MSG_DONTWAIT)
                except OSError:
                    continue  # it died while it waited; the guest buries it and makes another
                return number
        raise SandboxUnavailable("spares die before they run; the session needs a new sandbox")

    def tell(self, message: list[bytes]) -> None:
        """Send without waiting; a guest that does not read is taken for dead."""
        if not self.alive:
            return
        try:
            self._process.control.send(encode(message))
        except OSError:
            self._process.kill()
            self.close()

    def close(self) -> None:
        """Stop listening; whoever waits is told that the guest is gone. Idempotent."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._process.control)
        self._drop_spare()
        if self.entrance is not None:
            self.entrance.close()
            self.entrance = None
        self._wake()
        self._ended(None)

    def _on_readable(self) -> None:
        """Take what the guest says; anything that ours would not say ends the sandbox."""
        try:
            datagram, fds, _, _ = socket.recv_fds(self._process.control, MAX_DATAGRAM, 1)
        except BlockingIOError:
            return
        except OSError:
            datagram, fds = b"", []
        if not datagram:
            self.close()
            return
        try:
            self._take(parse_reply(datagram), fds)
        except (GuestProtocolError, OSError):
            self._process.kill()
            self.close()
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, reply: Reply, fds: list[int]) -> None:
        match reply:
            case NewSpare():
                if bool(fds) is self._relay:
                    raise GuestProtocolError("a spare without its socket, or with one too many")
                channel = socket.socket(fileno=fds.pop()) if fds else None
                self._drop_spare()
                self._spare = reply.number, channel
                if self._on_spare is not None and reply.pid:
                    self._on_spare(reply.number, reply.pid)
                self._wake()
            case Exited():
                self._drop_spare()
                self._ended(reply)
            case Gone():
                self._ended(Exited(reply.number, reply.wait_status, 0))
            case Failed():
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_exception(
                        SandboxUnavailable(f"the run could not be started: {reply.text}")
                    )
            case Ready():
                if bool(fds) is not bool(self._egress_port) or self.entrance is not None:
                    raise GuestProtocolError("ready without its entrance, or with one too many")
                if fds:
                    self.entrance = take_entrance(fds.pop(), self._egress_port)

    def _drop_spare(self) -> None:
        if self._spare is not None:
            if self._spare[1] is not None:
                self._spare[1].close()
            self._spare = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
