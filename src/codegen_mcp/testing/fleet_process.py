"""One process of a fleet under test: started as users start it, killed as tests want."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

START_S = 60.0
STOP_S = 45.0


class FleetProcess:
    """``codegen-mcp COMMAND`` with these variables; the same again at each ``start``."""

    def __init__(
        self,
        command: str,
        env: Mapping[str, str],
        log: Path,
        *,
        within: Sequence[str] = (),
    ) -> None:
        """Describe it.

        Args:
            command: ``worker`` or ``coordinator``.
            env: Beside this process's own.
            log: Where it writes, all its starts after another.
            within: A command that enters a namespace, before its own.
        """
        self.command = command
        self._env = {**os.environ, **env}
        self._log = log
        self._within = within
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the one that runs."""
        assert self._process is not None, f"{self.command} was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its starts have said."""
        return self._log.read_text()

    async def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: It ended, or does not serve in time; has the end of its log.
        """
        program = (
            f"from codegen_mcp.cli.main import main; raise SystemExit(main([{self.command!r}]))"
        )
        said = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._within, sys.executable, "-c", program, env=self._env, stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(START_S):
                while b"listening on" not in self._log.read_bytes()[said:]:
                    if self._process.returncode is not None:
                        break
                    await asyncio.sleep(0.02)
                else:
                    return
        except TimeoutError:
            await self.kill()
        raise RuntimeError(f"{self.command} does not serve:\n{self.log[-4000:]}")

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def drain(self) -> int:
        """SIGTERM; returns its exit code. One that does not end in time is killed."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(STOP_S):
                return await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise
