"""Every attack, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence

from codegen_mcp.sandbox.selftest.attack import Attack
from codegen_mcp.sandbox.selftest.files import FILES
from codegen_mcp.sandbox.selftest.guest import GUEST
from codegen_mcp.sandbox.selftest.kernel import KERNEL
from codegen_mcp.sandbox.selftest.limits import LIMITS
from codegen_mcp.sandbox.selftest.network import NETWORK
from codegen_mcp.sandbox.selftest.persistence import PERSISTENCE
from codegen_mcp.sandbox.selftest.processes import PROCESSES
from codegen_mcp.sandbox.selftest.works import WORKS

ESCAPES: Sequence[Attack] = (
    *WORKS,
    *FILES,
    *NETWORK,
    *PROCESSES,
    *KERNEL,
    *GUEST,
    *PERSISTENCE,
)
ATTACKS: Sequence[Attack] = (*ESCAPES, *LIMITS)
QUICK: Sequence[Attack] = tuple(attack for attack in ATTACKS if attack.quick)
