"""A tar's bytes as they are parsed: so many at a time, out of pieces of any length."""

from __future__ import annotations

from collections.abc import Iterator

from codegen_mcp.core.errors import Corrupt


class TarSource:
    """Takes bytes in order; memory use does not depend on how many there are."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self.offset = 0
        """Bytes taken so far."""

    def take(self, size: int, what: str) -> bytes:
        """Take exactly ``size`` bytes (few). Corrupt when there are fewer."""
        at = self._at
        end = at + size
        if end <= len(self._piece):
            self._at = end
            self.offset += size
            return self._piece[at:end]
        return b"".join(self.stream(size, what))

    def view(self, size: int, what: str) -> memoryview:
        """Take exactly ``size`` bytes (few) without a copy, where they lie in one piece."""
        at = self._at
        if size <= len(self._piece) - at:
            self._at = at + size
            self.offset += size
            return memoryview(self._piece)[at : at + size]
        return memoryview(b"".join(self.stream(size, what)))

    def stream(self, size: int, what: str) -> Iterator[memoryview]:
        """Take exactly ``size`` bytes, piece by piece. Corrupt when there are fewer."""
        while size:
            if self._at == len(self._piece):
                self._piece = next(self._pieces, b"")
                self._at = 0
                if not self._piece:
                    raise Corrupt(f"the archive ends at byte {self.offset}, in {what}")
            view = memoryview(self._piece)[self._at : self._at + size]
            self._at += len(view)
            self.offset += len(view)
            size -= len(view)
            yield view

    def expect_end(self) -> None:
        """Corrupt when anything is left."""
        if self._at < len(self._piece) or next(self._pieces, b""):
            raise Corrupt(f"bytes follow the archive's end at byte {self.offset}")
