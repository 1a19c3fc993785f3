"""The source text of the program that refills a sandbox: its modules in one."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

from codegen_mcp.engine.checkpoints import (
    refill_guest,
    refill_guest_input,
    refill_guest_manifest,
    refill_guest_places,
    refill_guest_tar,
)

_LOAD = """
import sys
def load(name, text):
    module = sys.modules[name] = type(sys)(name)
    exec(compile(text, name, "exec"), module.__dict__)
    return module
"""
_PARTS = (refill_guest_input, refill_guest_manifest, refill_guest_places, refill_guest_tar)


@functools.cache
def refill_program() -> str:
    """Return it, for ``python -c``; the last module is its main program."""
    lines = [f"load({part.__name__!r}, {_source(part)!r})" for part in _PARTS]
    name = refill_guest.__name__
    lines.append(f"guest = load({name!r}, {_source(refill_guest)!r})")
    return "\n".join([_LOAD, *lines, "sys.exit(guest.main(sys.argv[1:]))"])


def _source(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")
