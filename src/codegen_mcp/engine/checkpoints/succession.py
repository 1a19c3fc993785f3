"""What the next checkpoint of a session is: its number, and what it builds on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, Entry, parse_checkpoint_id
from codegen_mcp.core.errors import Corrupt, NotFound, StoreUnavailable, WrongState
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, Catalog, Shelf
from codegen_mcp.engine.checkpoints.checkpoint_config import CheckpointConfig
from codegen_mcp.engine.checkpoints.live_state import LiveState
from codegen_mcp.engine.checkpoints.recent import RecentManifests
from codegen_mcp.engine.checkpoints.retention import Retention
from codegen_mcp.engine.checkpoints.sound_chains import SoundChains
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.engine.checkpoints.taker import LIVE_STATE, Order
from codegen_mcp.engine.durable import write_file
from codegen_mcp.engine.session import Session
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

ISSUED = "checkpoint.number"
"""In a session's directory: the highest number that was used, where the store may be away."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What there is of a session when a save begins."""

    drafts: Sequence[int]
    shelf: Shelf = field(default_factory=Shelf)
    parent: CheckpointInfo | None = None
    base: Sequence[Entry] = ()
    away: StoreUnavailable | None = None
    """Why the store could not be asked."""


class Succession:
    """Chooses; the caller has the session's lock."""

    def __init__(
        self,
        catalog: Catalog,
        spool: Spool,
        retention: Retention,
        manifests: RecentManifests,
        chains: SoundChains,
        config: CheckpointConfig,
    ) -> None:
        """Wire it up; everything is shared with the checkpointer."""
        self._catalog = catalog
        self._spool = spool
        self._retention = retention
        self._manifests = manifests
        self._chains = chains
        self._config = config
        self._issued: dict[str, int] = {}

    async def look(self, session_id: str, epoch: int, incremental: bool) -> Found:
        """See what there is of a session. What a dead attempt left of it is cleared away.

        A store that does not answer need not stop a save: it becomes a full one, and waits.
        """
        # Before the store: a draft that is stored in between shows there.
        found = Found(drafts=await to_end(lambda: self._spool.numbers(session_id)))
        try:
            found.shelf = await self._catalog.shelf(session_id)
            await self._retention.clean(session_id, found.shelf, epoch)
            if incremental:
                found.parent, found.base = await self._parent(found.shelf, epoch)
        except StoreUnavailable as error:
            if not self._config.remote:
                raise
            found.away = error
        return found

    async def order(
        self, session: Session, epoch: int, found: Found, name: str, trigger: str
    ) -> Order:
        """Choose a number that was never used, as far as store and worker know."""
        session_id = session.session_id
        await self.recall(session_id, session.directory)
        issued = [found.shelf.newest, self._issued.get(session_id, 0), *found.drafts]
        if found.away is not None:
            live = await to_end(lambda: LiveState.load(session.directory / LIVE_STATE))
            if live is not None and live.checkpoint.startswith(session_id):
                issued.append(parse_checkpoint_id(live.checkpoint).number)
        checkpoint_id = CheckpointId(session_id, epoch, max(issued) + 1)
        self.note_issued(session_id, checkpoint_id.number)
        await self.keep(session_id, session.directory)
        return Order(
            checkpoint_id=checkpoint_id,
            name=name,
            parent=found.parent,
            base=found.base,
            trigger=trigger,
            storage_url=self._catalog.store.url(checkpoint_id.key + ARCHIVE),
            stored_here=self._config.exclusive and not self._config.remote,
        )

    async def _parent(
        self, shelf: Shelf, epoch: int
    ) -> tuple[CheckpointInfo | None, Sequence[Entry]]:
        """The newest checkpoint, when it is sound and its chain is not too long yet.

        One of another epoch is another worker's, which may still write below it: nothing is built
        on that.
        """
        for checkpoint_id in reversed(shelf.visible):
            if checkpoint_id.epoch != epoch:
                return None, ()
            try:
                info = await self._catalog.info(checkpoint_id, listed=True)
                if len(info.chain) >= self._config.max_chain:
                    return None, ()
                manifest = self._manifests.get(str(checkpoint_id))
                if manifest is None:
                    manifest, _ = await self._catalog.manifest(info)
                await self._chains.check(info)
                return info, manifest.entries
            except (Corrupt, NotFound, WrongState) as error:
                log.warning("checkpoint.no_parent", error=error.message)
                return None, ()
        return None, ()

    def note_issued(self, session_id: str, number: int) -> None:
        """Never use a number again, nor one below it."""
        self._issued[session_id] = max(number, self._issued.get(session_id, 0))

    async def recall(self, session_id: str, directory: Path) -> None:
        """Take note of the number that ``keep`` wrote, perhaps in the life of another worker."""
        if self._config.remote:
            path = directory / ISSUED
            self.note_issued(session_id, await to_end(lambda: _number_in(path)))

    async def hand_over(
        self, restored: CheckpointId, living: Iterable[Session], directory: Path
    ) -> None:
        """Note in the directory that takes a session's place which numbers were used.

        Args:
            restored: What it is filled from, a checkpoint of the session itself.
            living: Sessions of this worker; it may be among them, with a directory until now.
            directory: The one to come.

        Raises:
            OSError: It cannot be written. StoreUnavailable.
        """
        if self._config.remote:
            session_id = restored.session_id
            for one in living:
                if one.session_id == session_id:
                    await self.recall(session_id, one.directory)
            self.note_issued(session_id, (await self._catalog.shelf(session_id)).newest)
            await self.keep(session_id, directory)

    async def keep(self, session_id: str, directory: Path) -> None:
        """Write into a session's directory which numbers were used: a store that is away cannot.

        Raises:
            OSError: It cannot be written.
        """
        number = self._issued.get(session_id, 0)
        if self._config.remote and number:
            path = directory / ISSUED
            await to_end(lambda: write_file(path, b"%d\n" % number, durable=True))


def _number_in(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0
