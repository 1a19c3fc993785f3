"""Whether two requests are the same: a digest of everything that decides what a task does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from codegen_mcp.engine.base import Constraints
from codegen_mcp.tools.base import ToolModel

_NO_BOUNDS = "0.0:0.0:0.0"


def fingerprint(
    tool: str,
    arguments: object,
    env: Mapping[str, str],
    constraints: Constraints,
    sequence: int,
    secrets: Sequence[str] = (),
) -> str:
    """Return 32 hex digits; equal for equal content, however the arguments were passed."""
    bounds = (constraints.timeout_s, constraints.memory_bytes, constraints.output_bytes)
    told = _NO_BOUNDS
    if any(bounds):
        told = ":".join(repr(float(bound or 0)) for bound in bounds)
    head = f"{tool}:{sequence}:{told}"
    digest = hashlib.blake2b(head.encode("utf-8", "surrogatepass"), digest_size=16)
    if constraints.allow_network or constraints.allow_hosts or secrets:
        network = (constraints.allow_network, tuple(constraints.allow_hosts), tuple(secrets))
        _feed(network, digest.update)
    if env:
        _feed(env, digest.update)
    _feed(arguments, digest.update)
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[bytes], None]) -> None:
    """Write any plain value so that no two different ones read the same; maps are sorted."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        update(b"s%d:" % len(data))
        update(data)
    elif isinstance(value, bytes):
        update(b"b%d:" % len(value))
        update(value)
    elif isinstance(value, ToolModel):
        fields = value.__dict__
        update(b"o%d:" % len(fields))
        for part in fields.values():  # in the order of the model, which is always the same
            _feed(part, update)
    elif isinstance(value, Mapping):
        update(b"m%d:" % len(value))
        for key in sorted(value, key=str):
            _feed(key, update)
            _feed(value[key], update)
    elif isinstance(value, list | tuple):
        update(b"l%d:" % len(value))
        for part in value:
            _feed(part, update)
    else:  # None, numbers, enumerations
        update(f"{type(value).__name__}:{value!r};".encode("utf-8", "surrogatepass"))
