"""Runs attacks or laws as an ordinary user, in a process of its own that prints JSON.

``run_as`` starts it; ``python -m codegen_mcp.testing.sandbox_child`` is it. The package is copied
first: a checkout below a closed home cannot be read by another user.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import codegen_mcp
from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.report import describe
from codegen_mcp.sandbox.selftest.catalogue import ATTACKS, ESCAPES
from codegen_mcp.sandbox.selftest.runner import Campaign, conditions
from codegen_mcp.testing.refill_rig import refill_and_compare
from codegen_mcp.testing.sandbox_ground import Ground, open_directory
from codegen_mcp.testing.sandbox_laws import LAWS, SAMPLE, Law
from codegen_mcp.testing.sandbox_rig import Rig

ORDINARY_UID = 61_234
"""Belongs to nobody else."""
_TIMEOUT_S = 110


def run_as(
    ground: Ground,
    words: Sequence[str],
    *,
    uid: int = ORDINARY_UID,
    prefix: Sequence[str] = (),
    inner: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run this module with words as another user (or as the present one, who is not root).

    Args:
        ground: Prepared by the caller; its guest and template are used.
        words: Arguments, after the ground itself.
        uid: User and group, where the caller is root.
        prefix: Command that runs the command, for example to change mounts first.
        inner: Likewise, as the other user already.
        env: Further variables.
    """
    root = os.geteuid() == 0
    with ExitStack() as stack:
        state = stack.enter_context(open_directory(uid if root else 0))
        library = stack.enter_context(open_directory())
        library.chmod(0o755)
        source = Path(codegen_mcp.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__", "_proto")
        shutil.copytree(source, library / "codegen_mcp", ignore=ignored)
        command = [str(ground.interpreter.executable), "-m", __name__, ground.to_json(state)]
        become = ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
        return subprocess.run(
            [*prefix, *(become if root else []), *inner, *command, *words],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(library), **(env or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )


async def attacks(ground: Ground, name: str) -> object:
    """Run attacks: {attack: [verdict, seen]}, and the conditions they ran under.

    Without /proc the bombs are left out: what bounds them has nothing to do with it.
    """
    with ground.config() as config:
        backend = registry.create(name, config)
        probe = await backend.probe()
        if not probe.available:
            return {"unavailable": probe.reason}
        chosen = ESCAPES if probe.level is IsolationLevel.BUBBLEWRAP_NOPROC else ATTACKS
        results = await Campaign(backend, config, probe.level).run(chosen)
        return {
            "level": probe.level.value,
            "conditions": sorted(conditions(config, probe.level)),
            "results": {one.attack.name: [one.verdict.value, one.seen] for one in results},
        }


async def laws(ground: Ground, name: str, chosen: Sequence[Law] = LAWS) -> object:
    """Test the laws: {law: traceback or nothing}."""
    with ground.config() as config:
        backend = registry.create(name, config)
        probe = await backend.probe()
        if not probe.available:
            return {"unavailable": probe.reason}
        found = {}
        for law in chosen:
            found[law.__name__] = ""
            try:
                async with Rig(backend, config, ground.identities) as rig:
                    await law(rig)
            except Exception:
                found[law.__name__] = traceback.format_exc()
        return {"results": found}


async def sample(ground: Ground, name: str) -> object:
    """Test some of the laws."""
    return await laws(ground, name, SAMPLE)


async def refill(ground: Ground, name: str) -> object:
    """Refill a sandbox from a checkpoint: what is wrong then, or nothing."""
    with ground.config() as config:
        backend = registry.create(name, config)
        probe = await backend.probe()
        if not probe.available:
            return {"unavailable": probe.reason}
        async with Rig(backend, config, ground.identities) as rig:
            return {"problem": await refill_and_compare(rig, ground.state)}


async def probe(ground: Ground, name: str) -> object:
    """Probe one backend."""
    with ground.config() as config:
        found = await registry.create(name, config).probe()
        return {
            "available": found.available,
            "level": found.level.value,
            "reason": found.reason,
            "fix": found.fix,
        }


async def choose(ground: Ground, name: str) -> object:
    """Choose as a worker does: what it gets that accepts the weakest, and what by default."""
    found: dict[str, object] = {}
    with ground.config() as config:
        for key, required in (
            ("weakest", IsolationLevel.PROCESS_HARDENED),
            ("default", IsolationLevel.BUBBLEWRAP),
        ):
            try:
                choice = await registry.choose(config, name=name, required=required)
            except SandboxUnavailable as error:
                found[key] = {"refused": error.message}
            else:
                found[key] = {
                    "level": choice.probe.level.value,
                    "said": describe(choice.probe, rejected=choice.rejected),
                }
    return found


if __name__ == "__main__":
    known = (attacks, laws, sample, probe, refill, choose)
    doing = {one.__name__: one for one in known}[sys.argv[2]]
    print(json.dumps(asyncio.run(doing(Ground.from_json(sys.argv[1]), sys.argv[3]))))  # noqa: T201
