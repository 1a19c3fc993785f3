"""Which store of checkpoints this is: an id that lies in the store itself.

Two workers that read the same id can restore each other's checkpoints, whatever they call the
store's address; two stores at the same path of two machines have two ids.
"""

from __future__ import annotations

import contextlib
import secrets

from codegen_mcp.core.errors import AlreadyExists, NotFound
from codegen_mcp.stores.base import ObjectStore

KEY = "store.id"
MOST_BYTES = 128


class StoreIdentity:
    """Asks once; made by whoever asks first."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known = ""

    async def get(self) -> str:
        """Return the id.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        if not self._known:
            try:
                self._known = await self._read()
            except NotFound:
                made = f"store_{secrets.token_hex(16)}"
                with contextlib.suppress(AlreadyExists):  # another worker was faster
                    await self._store.put_bytes(KEY, made.encode())
                self._known = await self._read()
        return self._known

    async def _read(self) -> str:
        pieces = [piece async for piece in self._store.get(KEY, length=MOST_BYTES)]
        return b"".join(pieces).decode("ascii", "replace").strip()
