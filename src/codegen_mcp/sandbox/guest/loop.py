"""The guest itself: keeps a spare ready, buries what has run, and tells the worker."""

from __future__ import annotations

import os
import select
import time

import children
import entrance
import messages
from leftovers import Leftovers
from spare import Spare
from warm import WarmParent

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    import _socket

    from config import Config


YIELD_S = 0.0003
"""How long the processor is left to the worker once it was told of an end: the kernel puts the
receiver of a datagram where its sender runs, on the guess that the sender waits next."""


class Guest:
    """Serves the worker's messages.

    The worker sends a run straight to the spare, over a socket that the guest gave it, and wakes
    nobody else: what became of a spare is read when it has ended, from what it reported before any
    code of the session ran in it.
    """

    def __init__(self, config: Config, control: _socket.socket) -> None:
        self.config = config
        self.control = control
        self.poll = select.poll()
        self.number = 0
        self.spares: dict[int, Spare] = {}
        """By pidfd, or minus the pid where there is none. All but the newest are on their way out,
        or run."""
        self.news = -1
        self.warm: WarmParent | None = None
        self.wanted: frozenset[str] = frozenset()
        self.leftovers = Leftovers(config)

    def serve(self) -> None:
        """Answer until the worker is gone; then nothing inside may live on."""
        self.poll.register(self.control, select.POLLIN)
        self.news = children.watch()
        if self.news >= 0:
            self.poll.register(self.news, select.POLLIN)
        self.say_ready()
        self.refill()
        while True:
            events = [fd for fd, _ in self.poll.poll()]
            # What the worker said comes before what ended.
            if self.control.fileno() in events:
                self.read_control()
            if self.news in events:
                children.drain()
                self.look_for_ends()
            for fd in events:
                if fd in self.spares:
                    self.on_exit(fd)
                elif self.warm is not None and fd == self.warm.channel.fileno():
                    self.on_warm()

    def say_ready(self) -> None:
        """Report for duty, with the entrance of the way out where there is to be one."""
        if not self.config.egress_port:
            self.tell([b"ready"])
            return
        way_out = entrance.bind(self.config.egress_port)
        self.tell([b"ready"], [way_out.fileno()])
        way_out.close()

    def tell(self, items: list[bytes], fds: list[int] | None = None) -> None:
        """Send to the worker; when it is gone so are we."""
        try:
            messages.send(self.control, items, fds)
        except OSError:
            self.end()

    def end(self) -> None:
        """Leave nothing behind and go."""
        self.leftovers.kill(keep=0)
        os._exit(0)

    def read_control(self) -> None:
        """Take every message that is there."""
        while True:
            message, fds = messages.receive_all_now(self.control)
            if message is None:
                return
            if not message:
                self.end()
            elif message[0] == b"run":
                self.pass_on(int(message[1]), message[2], fds)
            elif message[0] == b"kill":
                self.kill(int(message[1]))
            elif message[0] in (b"changed", b"drop"):
                if message[0] == b"changed":
                    self.config.warm_failed = False
                self.wanted = frozenset()
                self.drop_warm()

    def pass_on(self, number: int, payload: bytes, fds: list[int]) -> None:
        """Give a run that came over the control socket to its spare.

        One that is gone is reported as that, once its end is seen.
        """
        for spare in self.spares.values():
            if spare.number == number:
                try:
                    messages.send(spare.entrance, [payload], fds)
                except OSError:
                    pass
                spare.entrance.close()
        for fd in fds:
            os.close(fd)

    def look_for_ends(self) -> None:
        """Without pidfds: ask for each spare whether it ended."""
        for key, spare in list(self.spares.items()):
            if key in self.spares:
                pid, status = os.waitpid(spare.pid, os.WNOHANG)
                if pid:
                    self.on_exit(key, status)

    def kill(self, number: int) -> None:
        """Kill a run's main process; its end does the rest."""
        for spare in self.spares.values():
            if spare.number == number:
                os.kill(spare.pid, 9)

    def on_exit(self, pidfd: int, status: int | None = None) -> None:
        """Collect a spare. One that was a run takes all it left along; then make ready anew."""
        spare = self.spares.pop(pidfd)
        if status is None:
            status = os.waitpid(spare.pid, 0)[1]
        imports = spare.imports()
        if imports is None:
            self.tell([b"gone", b"%d" % spare.number, b"%d" % status])
        else:
            count = self.bury()
            self.tell([b"exit", b"%d" % spare.number, b"%d" % status, b"%d" % count])
            self.wanted |= imports
            time.sleep(YIELD_S)
        self.forget_spare(pidfd)
        self.refill()

    def bury(self) -> int:
        """Kill whatever lives but the warm parent, waiting spares included."""
        count, kept = self.leftovers.kill(keep=self.warm.pid if self.warm else 0)
        for pidfd, spare in self.spares.items():
            self.forget_spare(pidfd)
            spare.imports()
            count -= 1
        self.spares.clear()
        if not kept:
            self.forget_warm()
        return max(0, count)

    def refill(self) -> None:
        """Have a spare that waits, from the warm parent when it has what is wanted."""
        try:
            if self.wanted and self.config.may_warm and not self.covered():
                self.drop_warm()
                self.announce(Spare.fork(self.config, self.control))
                self.warm = WarmParent.fork(self.config, self.control, self.wanted)
                self.poll.register(self.warm.channel, select.POLLIN)
            elif not self.spares:
                self.announce(self.make_spare())
        except OSError as error:
            self.tell([b"failed", str(error).encode()])

    def make_spare(self) -> Spare:
        """Fork one, warm if possible."""
        if self.warm is not None and self.warm.ready:
            spare = self.warm.fork_spare()
            if spare is not None:
                return spare
            self.drop_warm()
        return Spare.fork(self.config, self.control)

    def announce(self, spare: Spare) -> None:
        """Hand the worker the way to a new spare; it closes that to an older one."""
        self.number += 1
        spare.number = self.number
        pidfd = spare.watch() if self.news < 0 else -spare.pid
        self.spares[pidfd] = spare
        if pidfd >= 0:
            self.poll.register(pidfd, select.POLLIN)
        if self.config.relay:
            self.tell([b"spare", b"%d" % self.number])
        else:
            words = [b"spare", b"%d" % self.number, b"%d" % spare.pid]
            self.tell(words, [spare.entrance.fileno()])
            spare.entrance.close()

    def forget_spare(self, pidfd: int) -> None:
        """Watch it no more."""
        if pidfd >= 0:
            self.poll.unregister(pidfd)
            os.close(pidfd)

    def covered(self) -> bool:
        """Whether the warm parent was asked for everything that is wanted."""
        return self.warm is not None and self.wanted <= self.warm.asked

    def on_warm(self) -> None:
        """The warm parent is up, or has given up."""
        assert self.warm is not None
        self.poll.unregister(self.warm.channel)
        if not self.warm.finish_start():
            self.config.warm_failed = True  # until packages change: it would fail after each run
            self.drop_warm()
        else:
            self.announce(self.make_spare())

    def drop_warm(self) -> None:
        """End the warm parent; a spare that came from it is replaced."""
        if self.warm is not None:
            warm = self.warm
            self.forget_warm()
            warm.end()
            if any(spare.warm for spare in self.spares.values()):
                self.announce(Spare.fork(self.config, self.control))

    def forget_warm(self) -> None:
        """Let go of a warm parent that is dead or will be."""
        if self.warm is not None:
            try:
                self.poll.unregister(self.warm.channel)
            except KeyError:
                pass
            self.warm.channel.close()
            self.warm = None
