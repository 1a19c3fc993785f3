"""The guest's entry; its arguments are described in the worker's ``guest_protocol.py``."""

from __future__ import annotations

import os
import sys


def harden(init: bool) -> None:
    """Make this process one that code inside cannot signal, trace, read or catch with a secret."""
    import _signal

    from kernel import (
        PR_SET_CHILD_SUBREAPER,
        PR_SET_DUMPABLE,
        PR_SET_NO_NEW_PRIVS,
        give_way,
        prctl,
    )

    # The kernel drops signals to a namespace's init that it has no handler for.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    give_way(True)
    if not init:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError:
        threads = 1
    if threads != 1:
        sys.exit("guest: the interpreter has threads of its own; a fork of it would hang")


def main() -> None:
    """Serve until the worker closes the control socket."""
    # pwd comes in because there is no HOME here.
    bare = frozenset(sys.modules) - {"__future__", "pwd"}
    import _socket
    import gc

    from config import Config

    config = Config(sys.argv, bare)
    import program
    import users
    from loop import Guest

    harden(config.init)
    if config.run_as is not None and config.guest_uid != os.getuid():
        users.step_aside(config.guest_uid)
    os.umask(0o022)
    os.chdir("/")
    control = _socket.socket(fileno=config.control_fd)
    os.set_inheritable(config.control_fd, False)
    compile("try:\n    pass\nexcept OSError as e:\n    raise", "warm", "exec")
    # Here and not in each spare: what a fork writes to, it copies page by page.
    program.forget_guest(config)
    program.become_environment(config)
    os.environ.clear()
    os.environ.update([item.split("=", 1) for item in config.environment])
    gc.collect()
    gc.freeze()
    gc.disable()
    Guest(config, control).serve()


main()
