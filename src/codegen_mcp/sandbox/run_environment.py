"""The variables that every run gets before the session's own: nothing of the worker's."""

from __future__ import annotations

from collections.abc import Mapping

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.sandbox.base import VENV, WORKSPACE
from codegen_mcp.sandbox.guest_protocol import GUEST_ENV

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Without these, libraries start a thread for each core of the host, whatever the limit."""


def base_environment(
    interpreter: Interpreter,
    limits: ResourceLimits,
    *,
    workspace: str = WORKSPACE,
    venv: str = VENV,
    tmp: str = "/tmp",
) -> Mapping[str, str]:
    """Return the base environment; LANG is the guest's, which a forked run shares."""
    places = [f"{venv}/bin", "/usr/local/bin", "/usr/bin", "/bin"]
    own = str(interpreter.executable.parent)
    if not own.startswith("/usr/"):
        places.insert(1, own)
    threads = str(max(1, -(-limits.cpu_millicores // 1000)))
    return {
        "PATH": ":".join(places),
        "HOME": workspace,
        "LANG": GUEST_ENV["LANG"],
        "TMPDIR": tmp,
        "VIRTUAL_ENV": venv,
        **dict.fromkeys(THREAD_VARIABLES, threads),
    }
