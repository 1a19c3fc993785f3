"""Installing what is cached, beside pip; and a heavy import in a session's second run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cases
from processes import worker
from stats import Samples, Target

from codegen_mcp.client.connection import Connection

PACKAGE = "requests"
ROUNDS = 7


def pip_install(target: Path, wheels: Path) -> float:
    """Time `pip install` of the same package from local wheels into an empty directory."""
    start = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-index"),
            *("--find-links", wheels, "--disable-pip-version-check"),
            *("--root-user-action=ignore", "--target", target, PACKAGE),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


async def measure(_: Path) -> tuple[list[Samples], list[Target]]:
    ours, pip = (
        Samples("pkg.install requests (cached)"),
        Samples("pip install requests (local wheels)"),
    )
    first, second = Samples("import numpy, first run"), Samples("import numpy, second run")
    base, ready = Samples("print(1) beside it"), "import numpy; print(numpy.__version__)"
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "-d", wheels, PACKAGE],
            check=True,
        )
        settings = {"MEMORY_BYTES": str(1 << 30), "TASK_TIMEOUT_S": "300"}
        async with worker(**settings) as (address, _state), Connection(address) as w:
            session = await cases.create(w)
            await cases.execute(w, cases.install(session, PACKAGE))
            await cases.destroy(w, session)
            for number in range(ROUNDS):
                session = await cases.create(w)
                await cases.gap(0.3)
                took = await cases.timed(cases.execute(w, cases.install(session, PACKAGE)))
                target = Path(scratch) / f"target{number}"
                pip.add(await asyncio.to_thread(pip_install, target, wheels))
                ours.add(took)
                await cases.destroy(w, session)
            for _ in range(ROUNDS):
                session = await cases.create(w)
                await cases.execute(w, cases.install(session, "numpy"))
                base.add(await cases.timed(cases.execute(w, cases.run(session))))
                first.add(await cases.timed(cases.execute(w, cases.run(session, ready))))
                await asyncio.sleep(2)  # the warm parent is made off the path
                second.add(await cases.timed(cases.execute(w, cases.run(session, ready))))
                await cases.destroy(w, session)
    cost = max(0.0, second.p50 - base.p50) / max(1e-9, first.p50 - base.p50)
    return [ours, pip, base, first, second], [
        Target("pkg.install of a cached package / pip", ours.p50 / pip.p50, 0.15),
        Target("import numpy: cost in the second run / in the first", cost, 0.10),
    ]
