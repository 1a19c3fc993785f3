"""Network namespaces of a fleet under test: one cable each, that can be cut.

Needs root and ``ip`` (iproute2). The coordinator is in one namespace, the hub; what is in this
process's own reaches it through a Unix socket, which namespaces do not divide.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HUB = "hub"


class FleetNet:
    """An async context manager; at its end the namespaces are gone with their holders."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._holders: dict[str, asyncio.subprocess.Process] = {}
        self._relay: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._make()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _make(self) -> None:
        for name in (HUB, *self._names):
            holder = await asyncio.create_subprocess_exec(
                "unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 3600",
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            self._holders[name] = holder
            assert holder.stdout is not None
            if await holder.stdout.readline() != b"up\n":
                raise RuntimeError("no network namespace can be made here")
        for number, name in enumerate(self._names):
            there = f"{self._holders[name].pid}"
            await self._ip(
                HUB, "link", "add", f"to-{name}", "type", "veth",
                "peer", "name", "cable", "netns", there,
            )  # fmt: skip
            for where, link, last in ((HUB, f"to-{name}", 1), (name, "cable", 2)):
                await self._ip(where, "addr", "add", f"10.9.{number}.{last}/24", "dev", link)
                await self._ip(where, "link", "set", link, "up")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in (self._relay, *self._holders.values()):
            if process is not None:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    def within(self, name: str) -> Sequence[str]:
        """The command that runs another one in this namespace."""
        return ("nsenter", "--net", "--target", str(self._holders[name].pid))

    def hub_of(self, name: str) -> str:
        """The hub's address, as this namespace reaches it."""
        return f"10.9.{self._names.index(name)}.1"

    def address_of(self, name: str) -> str:
        """This namespace's address, as the hub reaches it."""
        return f"10.9.{self._names.index(name)}.2"

    async def cut(self, name: str) -> None:
        """Nothing gets through any more, and nobody is told."""
        await self._ip(HUB, "link", "set", f"to-{name}", "down")

    async def mend(self, name: str) -> None:
        """It does again."""
        await self._ip(HUB, "link", "set", f"to-{name}", "up")

    async def relay(self, socket: Path, port: int) -> None:
        """Let a Unix socket lead to a port of the hub's loopback."""
        self._relay = await asyncio.create_subprocess_exec(
            *self.within(HUB), sys.executable, "-m", __name__, str(socket), str(port),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._relay.stdout is not None
        assert await self._relay.stdout.readline() == b"up\n"

    async def _ip(self, name: str, *words: str) -> None:
        process = await asyncio.create_subprocess_exec(*self.within(name), "ip", *words)
        if await process.wait() != 0:
            raise RuntimeError(f"ip {' '.join(words)} failed in {name}")


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _serve(socket: str, port: int) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pipe(reader, back), _pipe(there, writer))

    async with await asyncio.start_unix_server(one, socket) as server:
        sys.stdout.write("up\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
