"""What a coordinator knows of one start of one worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.directory.base import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a worker said of itself when it registered."""

    worker_id: str
    start_id: str = ""
    """One for each start of its process; empty when it does not say, then each call is a start."""
    max_sessions: int = 0
    """0: not told."""
    tools: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()
    """Empty: not told, and taken to have any."""
    store_id: str = ""
    """Names the store of its checkpoints; empty: not told, and nobody else can restore them."""
    version: str = ""
    grpc_address: str = ""
    """Where it can be dialled; empty when it cannot."""
    dial_token: str = field(default="", repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Who holds which wall up, and what else it tells of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How full a worker said it was."""

    total: int
    """Sessions that it takes at most."""
    active: int
    draining: bool = False
    """It takes no new ones."""
    healthy: bool = True
    running: int = 0
    """Tasks under way."""


class Reservation:
    """A place on a worker that is counted as taken while the worker is being asked."""

    def __init__(self) -> None:
        self.taken = False

    def take(self) -> None:
        """The session is made: it stays counted until the worker's next word on its load."""
        self.taken = True


class Worker:
    """One start of one worker, as it is known here. Made by ``Workers``."""

    def __init__(self, owner: Owner, registration: Registration, *, start_id: str) -> None:
        self.owner = owner
        self.registration = registration
        self.start_id = start_id
        self.told_of_earlier = False
        self.link: WorkerLink | None = None
        """How to reach it; None until there is one. Closed by ``Workers``."""
        self.load: Load | None = None
        """None: it said nothing yet."""
        self._asked = 0
        self._taken = 0
        self._refused = False

    @property
    def worker_id(self) -> str:
        """Its name, over all of its starts."""
        return self.owner.worker_id

    @property
    def total(self) -> int:
        """Sessions that it takes at most; 0 when not known."""
        return self.registration.max_sessions if self.load is None else self.load.total

    @property
    def occupied(self) -> int:
        """Sessions that it has, and those that are on their way to it."""
        return (0 if self.load is None else self.load.active) + self._asked + self._taken

    @property
    def draining(self) -> bool:
        """It takes no new sessions."""
        return self.load is not None and (self.load.draining or not self.load.healthy)

    @property
    def fullness(self) -> float:
        """Occupied part of its places; 1 and more when it is full as far as is known here."""
        part = self.occupied / self.total if self.total > 0 else float(self.occupied)
        return max(part, 1.0) if self._refused else part

    def learn(self, load: Load) -> None:
        """Take its word for how full it is; what is being asked of it stays counted."""
        self.load = load
        self._taken = 0
        self._refused = False

    def refused(self) -> None:
        """It said that it has no room: believed until its next word on its load."""
        self._refused = True

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Count one place as taken; given back at the end, unless ``take`` was called."""
        reservation = Reservation()
        self._asked += 1
        try:
            yield reservation
        finally:
            self._asked -= 1
            self._taken += reservation.taken
