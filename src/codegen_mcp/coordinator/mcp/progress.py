"""Progress of a call: the newest words, told at most every so often, and never waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType

Send = Callable[[float, str], Awaitable[None]]
"""Takes the seconds since the call began, which rise, and the words."""

MAX_TEXT = 400
"""Characters of output in one notification: its end."""


class Progress:
    """Collects what happens and hands it to ``send`` from a task of its own.

    A client that reads slowly gets fewer and newer words; the code it waits for never waits for it.
    """

    def __init__(self, send: Send | None, interval_s: float, quiet_s: float) -> None:
        """``send`` None: nobody asked for progress."""
        self._send = send
        self._interval_s = interval_s
        self._quiet_s = quiet_s
        self._began = time.monotonic()
        self._news = asyncio.Event()
        self._text = ""
        self._task: asyncio.Task[None] | None = None
        self._running = False

    async def __aenter__(self) -> Progress:
        if self._send is not None:
            self._task = asyncio.create_task(self._run(self._send), name="mcp-progress")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def output(self, text: str) -> None:
        """Code printed this."""
        if self._send is not None and text:
            self._text = (self._text + text)[-MAX_TEXT:]
            self._news.set()

    def stage(self, words: str) -> None:
        """A tool says how far it is."""
        if self._send is not None and words:
            self._text = words[:MAX_TEXT]
            self._news.set()

    def running(self) -> None:
        """From here on silence is worth a word."""
        self._running = True
        self._news.set()

    async def _run(self, send: Send) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._quiet_s if self._running else None):
                    await self._news.wait()
            self._news.clear()
            seconds = round(time.monotonic() - self._began, 3)
            if self._text:
                words, self._text = self._text, ""
                await send(seconds, words)
            elif self._running and seconds >= self._quiet_s:
                await send(seconds, f"still running after {seconds:.0f} s")
            await asyncio.sleep(self._interval_s)
