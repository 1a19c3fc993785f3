"""The trusted fetcher: brings what a request resolves to from the index into the wheelhouse.

Outside every session, and itself confined (``fetcher_sandbox.py``): uv resolves for the session's
interpreter without building anything, the guest downloads one wheel of each package, the worker
checks hashes and copies them in. Requests for the same thing at the same time share one fetch.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from codegen_mcp.core.errors import Full, LimitExceeded, StoreUnavailable, WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.base import Progress
from codegen_mcp.languages.python import index_links
from codegen_mcp.languages.python.builder import Stub
from codegen_mcp.languages.python.fetcher_job import FetchJob, FetchTools, open_job
from codegen_mcp.languages.python.fetcher_sources import choose_source, requirements_of
from codegen_mcp.languages.python.packages import Index, PackageConfig, choose_index
from codegen_mcp.languages.python.specifiers import Specifier
from codegen_mcp.languages.python.wheelhouse import Wheelhouse, view_key
from codegen_mcp.languages.python.wheelhouse_index import View

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """What a session needs."""

    specifiers: Sequence[Specifier]
    index: Index
    interpreter: Interpreter
    no_deps: bool = False
    upgrade: bool = False
    stubs: Sequence[Stub] = ()
    """Of wheels that the session built itself."""

    @property
    def key(self) -> str:
        """Equal for requests that resolve to the same."""
        texts = sorted(specifier.text for specifier in self.specifiers)
        stubs = sorted(stub.metadata for stub in self.stubs)
        interpreter = f"{self.interpreter.name} {self.interpreter.version}"
        return view_key([self.index.id, interpreter, str(self.no_deps), *texts, "", *stubs])

    @property
    def pinned(self) -> bool:
        """Whether every name has an exact version."""
        return all(specifier.pinned for specifier in self.specifiers)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A view, or the resolver's reasons why there is none."""

    view: View | None
    words: str = ""
    exit_code: int = 0
    source: str = ""
    """File name of the source distribution in the view, where one was asked for."""


@dataclass(slots=True)
class _Joint:
    """One fetch that several requests wait for."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    finished: float = -1.0
    result: Fetched | WorkerError | None = None


class PackageFetcher:
    """Serves all sessions."""

    def __init__(self, config: PackageConfig, wheelhouse: Wheelhouse) -> None:
        self._config = config
        self._wheelhouse = wheelhouse
        self._indexes = tuple(Index.parse(url) for url in config.index_urls)
        self._settings_lock = asyncio.Lock()
        self._tools = FetchTools(
            config=config, wheelhouse=wheelhouse, authorities=config.authorities, linked={}
        )
        self._joints: dict[str, _Joint] = {}
        self._running = asyncio.Semaphore(config.max_fetches)

    async def indexes(self) -> tuple[Index, ...]:
        """Return the configured indexes, or the default one of pip.

        Raises:
            StoreUnavailable: None is configured, and pip has none.
        """
        async with self._settings_lock:
            if not self._indexes:
                settings = await index_links.pip_settings()
                self._indexes = (settings.index,)
                if self._config.ca_bundle is None and settings.authorities is not None:
                    self._tools = FetchTools(
                        config=self._config,
                        wheelhouse=self._wheelhouse,
                        authorities=settings.authorities,
                        linked=self._tools.linked,
                    )
        return self._indexes

    async def choose_index(self, url: str) -> Index:
        """Return the index that a request means; see ``packages.choose_index``."""
        if self._config.offline and not url and not self._indexes:
            return _NO_INDEX
        return choose_index(await self.indexes(), url)

    def everything(self, request: FetchRequest) -> View:
        """Return a view of all that is here, for use without the index; blocks for a moment."""
        ids = [request.index.id]
        return self._wheelhouse.add_everything(view_key(["everything", *ids]), ids)

    def fresh(self, request: FetchRequest) -> View | None:
        """Return a view that needs no question to the index."""
        view = self._wheelhouse.find(request.key)
        if view is None or request.upgrade:
            return None
        return view if view.pinned or self._wheelhouse.age_s(view) < self._config.ttl_s else None

    def stale(self, request: FetchRequest) -> View | None:
        """Return a view of any age, for when the index does not answer."""
        return self._wheelhouse.find(request.key)

    async def fetch(self, request: FetchRequest, progress: Progress) -> Fetched:
        """Return a view for the request, from the index where the wheelhouse does not suffice.

        Raises:
            StoreUnavailable: The index does not answer.
            LimitExceeded: It is more than the settings allow.
            Corrupt: A file is not what the index says it is.
        """
        if (view := self.fresh(request)) is not None:
            return Fetched(view)
        return await self._join(request, request.key, lambda: self._fetch(request, progress))

    async def fetch_source(
        self, request: FetchRequest, specifier: Specifier, progress: Progress
    ) -> Fetched:
        """Return a view with a project's source distribution and the wheels that build it.

        Raises: as ``fetch``.
        """
        key = view_key(["source", request.index.id, request.interpreter.version, specifier.text])
        return await self._join(
            request, key, lambda: self._fetch_source(request, specifier, key, progress)
        )

    async def _join(
        self, request: FetchRequest, key: str, fetch: Callable[[], Awaitable[Fetched]]
    ) -> Fetched:
        began = time.monotonic()
        joint = self._joints.setdefault(key, _Joint())
        joint.waiting += 1
        try:
            async with joint.lock:
                if joint.result is None or joint.finished < began:
                    await self._run(joint, request, fetch)
                if isinstance(joint.result, WorkerError):
                    raise joint.result
                assert joint.result is not None
                return joint.result
        finally:
            joint.waiting -= 1
            if not joint.waiting:
                self._joints.pop(key, None)

    async def _run(
        self, joint: _Joint, request: FetchRequest, fetch: Callable[[], Awaitable[Fetched]]
    ) -> None:
        """Fetch for everybody who waits; a cancelled one leaves it to the next."""
        joint.result = None
        try:
            async with self._running, asyncio.timeout(self._config.fetch_timeout_s):
                joint.result = await fetch()
        except TimeoutError:
            joint.result = StoreUnavailable(
                f"the package index {request.index.public_url} did not deliver within "
                f"{self._config.fetch_timeout_s:g} s; try again later"
            )
        except WorkerError as error:
            joint.result = error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            joint.result = Full("the worker has no disk space left for packages; try again later")
        finally:
            joint.finished = time.monotonic()

    async def _fetch(self, request: FetchRequest, progress: Progress) -> Fetched:
        started = time.monotonic()
        names = [specifier.name for specifier in request.specifiers]
        texts = [specifier.text for specifier in request.specifiers]
        async with open_job(self._tools, request.index, request.interpreter, names) as job:
            await progress(10, "resolving", f"asking {request.index.public_url}")
            resolution = await job.resolve(texts, no_deps=request.no_deps, stubs=request.stubs)
            if resolution.exit_code:
                return Fetched(None, resolution.words, resolution.exit_code)
            missing = len(job.missing(resolution.wheels))
            await progress(30, "fetching", f"{missing} of {len(resolution.wheels)} wheels")
            files = await job.bring(resolution.wheels)
        view = await self._add_view(request, request.key, files, pinned=request.pinned)
        _log_fetch(request, job, len(files), missing, started)
        return Fetched(view, resolution.words)

    async def _fetch_source(
        self, request: FetchRequest, specifier: Specifier, key: str, progress: Progress
    ) -> Fetched:
        started = time.monotonic()
        index, interpreter = request.index, request.interpreter
        async with open_job(self._tools, index, interpreter, [specifier.name]) as job:
            await progress(20, "fetching", f"the source of {specifier.text}")
            listed = await job.sources(specifier.name)
            source = choose_source(listed, specifier, interpreter)
            if source is None:
                return Fetched(None, f"there is no source distribution for {specifier.text}", 1)
            files = dict(await job.bring([source]))
            pyproject = await job.pyproject(source.name)
            resolution = await job.resolve(requirements_of(source, pyproject))
            if resolution.exit_code:
                words = f"what builds {source.name} cannot be had:\n{resolution.words}"
                return Fetched(None, words, resolution.exit_code)
            files |= await job.bring(resolution.wheels)
        view = await self._add_view(request, key, files, pinned=False)
        _log_fetch(request, job, len(files), len(files), started)
        return Fetched(view, source=source.name)

    async def _add_view(
        self, request: FetchRequest, key: str, files: Mapping[str, str], *, pinned: bool
    ) -> View:
        view = await asyncio.to_thread(
            self._wheelhouse.add_view, key, files, request.index.id, pinned=pinned
        )
        if view is None:
            raise LimitExceeded(
                "the wheelhouse is too small for what was asked for; raise WHEELHOUSE_BYTES"
            )
        return view


_NO_INDEX = Index(url="", public_url="", host="", port=0)


def _log_fetch(
    request: FetchRequest, job: FetchJob, files: int, downloaded: int, started: float
) -> None:
    _log.info(
        "packages.fetched",
        index=request.index.public_url,
        files=files,
        downloaded=downloaded,
        bytes_in=job.counters.bytes_in,
        duration_ms=round((time.monotonic() - started) * 1000),
    )
