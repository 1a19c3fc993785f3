"""What gets through inside gVisor, and why it stays inside: its own kernel grants it.

Attacks ask for what the host's kernel must refuse. gVisor's serves many such calls itself, out of
its own memory, and nothing of them reaches the host. Newer versions refuse more of them.
"""

from __future__ import annotations

from collections.abc import Mapping

_OWN = "served by gVisor's own kernel, not the host's"
GVISOR_GAPS: Mapping[str, str] = {
    "write to the system directories": "/dev is gVisor's, in the sandbox's own memory",
    "find device nodes beyond the harmless ones": "a fuse device of gVisor's own kernel",
    "make a user namespace": _OWN,
    "program the packet filter from a new user namespace": _OWN,
    "leave the control group": "an empty list of gVisor's own",
    "stay unconfined in a program run from memory": "the filter is around gVisor, not inside",
    "read kernel memory and logs, press SysRq": "a log that gVisor makes up",
    "call through the 32-bit and x32 doors": "both fail in gVisor, which kills nobody for trying",
    "have the kernel signal the guest (F_SETOWN, F_SETSIG)": (
        "gVisor asks for no permission there: a session can end its own sandbox"
    ),
    "open the guest's memory": "its auxiliary vector alone, which holds no secret",
    "make the guest the OOM killer's first choice": "a number that means nothing in gVisor",
    "fork without end": "each process costs gVisor memory: the group may end the sandbox first",
    "use every processor": (
        "gVisor counts what processes wish to use; the group bounds what they get"
    ),
    "hold a capability, or lack the filter": "the filter is around gVisor, not inside",
    "raise limits again, or leave the OOM killer's list": _OWN,
    "use io_uring": _OWN,
    "read the guest's environment, maps and descriptors": (
        "gVisor does not hide what is not dumpable; the guest's environment holds no secret"
    ),
}
"""Name of the attack to why."""
