"""The guest itself: one run at a time, a spare ready for the next."""

from __future__ import annotations

import os
import select

import messages
from kernel import pidfd_open
from leftovers import Leftovers
from spare import Spare
from warm import WarmParent

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    import _socket

    from config import Config


class Guest:
    """Serves the worker's messages."""

    def __init__(self, config: Config, control: _socket.socket) -> None:
        self.config = config
        self.control = control
        self.poll = select.poll()
        self.spare: Spare | None = None
        self.warm: WarmParent | None = None
        self.wanted: frozenset[str] = frozenset()
        self.leftovers = Leftovers(config)
        self.run = b""
        self.pid = 0
        self.pidfd = -1
        self.channel: _socket.socket | None = None
        """To the process of the run; it said there what it imports before its code began."""

    def serve(self) -> None:
        """Answer until the worker is gone; then nothing inside may live on."""
        self.poll.register(self.control, select.POLLIN)
        self.refill()
        self.tell([b"ready"])
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.control.fileno():
                    self.on_message()
                elif fd == self.pidfd:
                    self.on_exit()
                elif self.warm is not None and fd == self.warm.channel.fileno():
                    self.on_warm()

    def tell(self, items: list[bytes]) -> None:
        """Send to the worker; when it is gone so are we."""
        try:
            messages.send(self.control, items)
        except OSError:
            self.end()

    def end(self) -> None:
        """Leave nothing behind and go."""
        self.leftovers.kill(keep=0)
        os._exit(0)

    def on_message(self) -> None:
        """Take one message of the worker."""
        message, fds = messages.receive(self.control)
        if not message:
            self.end()
        elif message[0] == b"run":
            self.start(message[1], fds)
        elif message[0] == b"kill" and message[1] == self.run and self.pid:
            os.kill(self.pid, 9)
        elif message[0] in (b"changed", b"drop"):
            self.drop_warm()
            if message[0] == b"drop":
                self.wanted = frozenset()

    def start(self, run: bytes, fds: list[int]) -> None:
        """Hand a run to the spare."""
        try:
            if self.spare is not None and not self.spare.alive():
                self.spare = None
            if self.spare is None:
                self.spare = Spare.fork(self.config, self.control)
            spare, self.spare = self.spare, None
            self.pidfd = pidfd_open(spare.pid)
            messages.send(spare.channel, [b"go"], fds)
            self.run, self.pid, self.channel = run, spare.pid, spare.channel
            self.poll.register(self.pidfd, select.POLLIN)
        except OSError as error:
            self.leftovers.kill(keep=0)
            self.forget_warm()
            self.tell([b"failed", run, str(error).encode()])
        finally:
            messages.close_all(fds)

    def on_exit(self) -> None:
        """Bury a run: status, leftovers, answer; then make ready for the next."""
        self.poll.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        status = os.waitpid(self.pid, 0)[1]
        self.note_imports()
        count, kept = self.leftovers.kill(keep=self.warm.pid if self.warm else 0)
        if not kept:
            self.forget_warm()
        run, self.run, self.pid = self.run, b"", 0
        self.tell([b"exit", run, b"%d" % status, b"%d" % count])
        self.refill()

    def note_imports(self) -> None:
        """Read what the run said of its imports, if it came so far."""
        channel, self.channel = self.channel, None
        assert channel is not None
        channel.setblocking(False)
        try:
            message = messages.receive(channel)[0]
            self.wanted |= frozenset(name.decode("utf-8", "replace") for name in message[1:])
        except (OSError, ValueError):
            pass
        finally:
            channel.close()

    def refill(self) -> None:
        """Fork a spare, from the warm parent when it has what is wanted."""
        try:
            if self.spare is None and self.warm is not None and self.warm.ready:
                self.spare = self.warm.fork_spare()
                if self.spare is None:
                    self.drop_warm()
            if self.spare is None:
                self.spare = Spare.fork(self.config, self.control)
            if self.wanted and self.config.warm_kib and not self.covered():
                self.drop_warm()
                self.warm = WarmParent.fork(self.config, self.control, self.wanted)
                self.poll.register(self.warm.channel, select.POLLIN)
        except OSError:
            self.spare = None  # the next run tries again and tells why

    def covered(self) -> bool:
        """Whether the warm parent was asked for everything that is wanted."""
        return self.warm is not None and self.wanted <= self.warm.asked

    def on_warm(self) -> None:
        """The warm parent is up, or has given up."""
        warm = self.warm
        assert warm is not None
        self.poll.unregister(warm.channel)
        if not warm.finish_start():
            # Not tried again until packages change: what fails once would fail after each run.
            self.wanted = frozenset()
            self.config.warm_kib = 0
            self.drop_warm()
        elif not self.pid:
            cold, self.spare = self.spare, warm.fork_spare()
            if cold is not None:
                cold.end()
            if self.spare is None:
                self.drop_warm()
                self.refill()

    def drop_warm(self) -> None:
        """End the warm parent and any spare that came from it."""
        if self.warm is not None:
            warm = self.warm
            self.forget_warm()
            warm.end()
        if self.spare is not None and self.spare.warm:
            self.spare.end()
            self.spare = None
            if not self.pid:
                self.spare = Spare.fork(self.config, self.control)

    def forget_warm(self) -> None:
        """Let go of a warm parent that is dead or will be."""
        if self.warm is not None:
            try:
                self.poll.unregister(self.warm.channel)
            except KeyError:
                pass
            self.warm.channel.close()
            self.warm = None
