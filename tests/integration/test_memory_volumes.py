"""Sessions of a real worker on volumes in memory: kept by a gentle end, lost and told by a kill."""

from __future__ import annotations

import os

import pytest
from grpc import aio

from codegen_mcp.testing.driven import Driven
from codegen_mcp.testing.wire import RichError, dial
from codegen_mcp.testing.worker import start_worker_process, state_directory

MIB = 1024 * 1024

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
soak = pytest.mark.skipif(not SOAK, reason="a long run; the other kind is the sample")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.mark.parametrize(
    "volume", [pytest.param("tmpfs", marks=[pytest.mark.soak, soak]), "overlay"]
)
async def test_a_gentle_end_keeps_the_files_and_a_kill_says_that_they_are_lost(volume: str) -> None:
    settings = {"volume": volume, "disk_bytes": 32 * MIB, "pool_size": 1, "max_sessions": 4}
    async with state_directory() as state:
        worker = await start_worker_process(state, **settings)
        try:
            async with dial(worker.address) as wire:
                session = Driven(wire, await wire.session())
                ran = await session.python("open('a', 'w').write('first'); open('b', 'w')")
                assert ran.ok, ran
            assert await worker.stop() == 0
            worker = await start_worker_process(state, **settings)
            async with dial(worker.address) as wire:
                session = Driven(wire, session.id)
                ran = await session.python(
                    "import os; os.unlink('b'); print(os.listdir('.'), open('a').read())"
                )
                assert (ran.ok, ran.stdout) == (True, b"['a'] first\n")
                assert (await session.write("c", b"acknowledged")).ok
            await worker.kill()
            worker = await start_worker_process(state, **settings)
            async with dial(worker.address) as wire:
                with pytest.raises(aio.AioRpcError) as caught:
                    await Driven(wire, session.id).python("print(1)")
                assert RichError(caught.value).code.name in ("NOT_FOUND", "FAILED_PRECONDITION")
                fresh = Driven(wire, await wire.session())
                assert (await fresh.python("print(1)")).ok
                await fresh.destroy()
        finally:
            await worker.stop()
