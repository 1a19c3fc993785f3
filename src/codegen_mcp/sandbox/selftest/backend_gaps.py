"""What gets through in backends that differ from version to version, and why that is accepted.

Attacks ask for what the host's kernel must refuse. gVisor's serves many such calls itself, out of
its own memory, and nothing of them reaches the host; newer versions refuse more of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from codegen_mcp.sandbox.base import IsolationLevel

_OWN = "served by gVisor's own kernel, not the host's"
_GVISOR: Mapping[str, str] = {
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
    "use the kernel's keyring": _OWN,
    "read the guest's environment, maps and descriptors": (
        "gVisor does not hide what is not dumpable; the guest's environment holds no secret"
    ),
}
_CONTAINER: Mapping[str, str] = {
    "learn which files the host has": "/etc is the image's own, not the host's",
    "leave the control group": "engines show the control groups of a container, read-only",
    "raise limits again, or leave the OOM killer's list": (
        "an engine without CAP_SYS_RESOURCE leaves oom_score_adj to the session; its own control "
        "group bounds it all the same"
    ),
}
BACKEND_GAPS: Mapping[str, Mapping[str, str]] = {
    IsolationLevel.GVISOR: _GVISOR,
    IsolationLevel.CONTAINER: _CONTAINER,
}
"""Level to the attack's name to why."""
