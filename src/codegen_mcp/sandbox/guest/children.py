"""News of children that ended, for kernels without pidfd_open(2): SIGCHLD through a pipe.

gVisor's kernel had none for long. The handler does nothing: init may be sent SIGCHLD from inside,
and then merely looks whether somebody ended.
"""

from __future__ import annotations

import _signal
import os

from kernel import pidfd_open

_UNSET = -1
_ends = [_UNSET, _UNSET]


def watch() -> int:
    """Return a descriptor that is readable once a child ended; -1 where pidfds do that."""
    try:
        os.close(pidfd_open(os.getpid()))
    except OSError:
        _ends[:] = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.signal(_signal.SIGCHLD, _ignore)
        _signal.set_wakeup_fd(_ends[1], warn_on_full_buffer=False)
    return _ends[0]


def drain() -> None:
    """Take what has arrived; ask for those that ended after that, not before."""
    try:
        while os.read(_ends[0], 512):
            pass
    except BlockingIOError:
        pass


def forget() -> None:
    """Undo it in a forked child."""
    if _ends[0] != _UNSET:
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        for end in _ends:
            os.close(end)
        _ends[:] = _UNSET, _UNSET


def _ignore(number: int, frame: object) -> None:
    pass
