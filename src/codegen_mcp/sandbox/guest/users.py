"""Two users: the guest is one, the session's code another, which can then do nothing to the guest.

A signal, a trace, a limit set from outside, a look into /proc: each needs the same user, or a
capability (kill(2), ptrace(2), prlimit(2), credentials(7)). The guest has the few that it needs to
turn its children into the other user and to kill them; they go there.
"""

from __future__ import annotations

import os

from kernel import (
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    own_user_namespace,
    prctl,
    set_capabilities,
)

_CAPABILITIES = 41
"""Of Linux 5.9 and later (capabilities(7))."""


_NEEDED = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8
"""CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP."""


def step_aside(uid: int) -> None:
    """Turn the guest, which is the session's user, into another one; it keeps what it needs."""
    prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    set_capabilities(_NEEDED)


def become(uid: int, called: int) -> None:
    """Turn this process into the session's user, for good and without any capability.

    Args:
        uid: The user, and group, to be.
        called: What it calls itself; where that is another number a user namespace translates
            (user_namespaces(7)).
    """
    drop_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if called != uid:
        own_user_namespace()
        drop_bounding_set()  # a new namespace fills it
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(f"{called} {uid} 1")
    set_capabilities(0)


def drop_bounding_set() -> None:
    """Have no program get a capability."""
    for capability in range(_CAPABILITIES):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            pass  # not one of this kernel's
