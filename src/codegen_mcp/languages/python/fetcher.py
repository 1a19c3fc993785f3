"""The trusted fetcher: brings what a request resolves to from the index into the wheelhouse.

Outside every session, and itself confined (``fetcher_sandbox.py``): uv resolves for the session's
interpreter without building anything, the guest downloads one wheel of each package, the worker
checks hashes and copies them in. Requests for the same thing at the same time share one fetch.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from packaging.utils import NormalizedName

from codegen_mcp.core.errors import Corrupt, LimitExceeded, StoreUnavailable, WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.base import Progress
from codegen_mcp.languages.python import fetcher_words, index_links
from codegen_mcp.languages.python.fetcher_lock import RemoteFile, Resolution, read_lock
from codegen_mcp.languages.python.fetcher_sandbox import FetchSandbox, Message
from codegen_mcp.languages.python.index_proxy import IndexProxy
from codegen_mcp.languages.python.index_rules import EgressRules, Origin
from codegen_mcp.languages.python.packages import Index, PackageConfig, choose_index
from codegen_mcp.languages.python.specifiers import Specifier
from codegen_mcp.languages.python.wheelhouse import StagedWheel, View, Wheelhouse, view_key

_log = structlog.get_logger()

_PAGES_ASKED = 5
"""Pages read to learn where files lie; one is enough for most indexes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """What a session needs."""

    specifiers: Sequence[Specifier]
    index: Index
    interpreter: Interpreter
    no_deps: bool = False
    upgrade: bool = False

    @property
    def key(self) -> str:
        """Equal for requests that resolve to the same."""
        texts = sorted(specifier.text for specifier in self.specifiers)
        interpreter = f"{self.interpreter.name} {self.interpreter.version}"
        return view_key([self.index.id, interpreter, str(self.no_deps), *texts])

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
    from_index: bool = False
    """Whether the index was asked."""


@dataclass(slots=True)
class _Joint:
    """One fetch that several requests wait for."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    finished: float = -1.0
    result: Fetched | WorkerError | None = None


class PackageFetcher:
    """Serves all sessions; ``open`` first."""

    def __init__(self, config: PackageConfig, wheelhouse: Wheelhouse) -> None:
        self._config = config
        self._wheelhouse = wheelhouse
        self._indexes = tuple(Index.parse(url) for url in config.index_urls)
        self._authorities = config.authorities
        self._settings_lock = asyncio.Lock()
        self._linked: dict[str, set[Origin]] = {}
        self._joints: dict[str, _Joint] = {}
        self._running = asyncio.Semaphore(config.max_fetches)

    async def open(self) -> None:
        """Make the directories and delete what an earlier worker left in them."""
        await asyncio.to_thread(self._open)

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
                    self._authorities = settings.authorities
        return self._indexes

    async def choose_index(self, url: str) -> Index:
        """Return the index that a request means; see ``packages.choose_index``."""
        if self._config.offline and not url and not self._indexes:
            return _NO_INDEX
        return choose_index(await self.indexes(), url)

    def everything(self, request: FetchRequest) -> View:
        """Return a view of all that is here, for use without the index; blocks for a moment."""
        indexes = [index.id for index in self._indexes] or [request.index.id]
        if request.index is not _NO_INDEX:
            indexes = [request.index.id]
        return self._wheelhouse.add_everything(view_key(["everything", *indexes]), indexes)

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
        began = time.monotonic()
        joint = self._joints.setdefault(request.key, _Joint())
        joint.waiting += 1
        try:
            async with joint.lock:
                if joint.result is None or joint.finished < began:
                    await self._run(joint, request, progress)
                if isinstance(joint.result, WorkerError):
                    raise joint.result
                assert joint.result is not None
                return joint.result
        finally:
            joint.waiting -= 1
            if not joint.waiting:
                self._joints.pop(request.key, None)

    async def _run(self, joint: _Joint, request: FetchRequest, progress: Progress) -> None:
        """Fetch for everybody who waits; a cancelled one leaves it to the next."""
        joint.result = None
        try:
            async with self._running, asyncio.timeout(self._config.fetch_timeout_s):
                joint.result = await self._fetch(request, progress)
        except TimeoutError:
            joint.result = StoreUnavailable(
                f"the package index {request.index.public_url} did not deliver within "
                f"{self._config.fetch_timeout_s:g} s; try again later"
            )
        except WorkerError as error:
            joint.result = error
        finally:
            joint.finished = time.monotonic()

    async def _fetch(self, request: FetchRequest, progress: Progress) -> Fetched:
        index, started = request.index, time.monotonic()
        rules = EgressRules(index, self._config.file_hosts)
        if index.id in self._linked:
            rules.allow_linked(self._linked[index.id])
        else:
            await self._learn(rules, request, [one.name for one in request.specifiers])
        async with self._job() as job:
            owner = self._config.fetch_identity
            async with (
                IndexProxy(
                    rules,
                    job / "proxy.sock",
                    max_bytes=self._config.max_fetch_bytes,
                    owner=(owner.uid, owner.gid) if owner else None,
                ) as proxy,
                FetchSandbox(self._config, request.interpreter, job, self._authorities) as guest,
            ):
                await progress(10, "resolving", f"asking {index.public_url}")
                answer = await self._resolve(guest, rules, proxy, request)
                words = index.hide_secrets(str(answer.get("words", "")))
                if answer.get("code") != 0:
                    fetcher_words.raise_if_unavailable(index, words, proxy.counters)
                    return Fetched(None, words, int(answer.get("code") or 1), from_index=True)
                resolution = read_lock(str(answer.get("lock", "")), request.interpreter)
                missing = [
                    wheel
                    for wheel in resolution.wheels
                    if not wheel.sha256 or not self._wheelhouse.has(wheel.sha256)
                ]
                await progress(30, "fetching", f"{len(missing)} of {len(resolution.wheels)} wheels")
                await self._download(guest, rules, proxy, request, missing)
            view = await self._take_in(job, request, resolution, missing)
        _log.info(
            "packages.fetched",
            index=index.public_url,
            wheels=len(resolution.wheels),
            downloaded=len(missing),
            bytes_in=proxy.counters.bytes_in,
            duration_ms=round((time.monotonic() - started) * 1000),
        )
        return Fetched(view, words, from_index=True)

    async def _resolve(
        self, guest: FetchSandbox, rules: EgressRules, proxy: IndexProxy, request: FetchRequest
    ) -> Message:
        question = {
            "do": "compile",
            "requirements": [specifier.text for specifier in request.specifiers],
            "arguments": ["--no-deps"] if request.no_deps else [],
            "env": {"UV_DEFAULT_INDEX": request.index.url},
        }
        answer = await guest.ask(question)
        if answer.get("code") != 0 and proxy.counters.refused:
            names = fetcher_words.projects_in(str(answer.get("words", "")))
            if await self._learn(rules, request, names):
                answer = await guest.ask(question)
        return answer

    async def _download(
        self,
        guest: FetchSandbox,
        rules: EgressRules,
        proxy: IndexProxy,
        request: FetchRequest,
        files: Sequence[RemoteFile],
    ) -> None:
        total = sum(file.size for file in files)
        if total > self._config.max_fetch_bytes:
            raise LimitExceeded(
                f"the wheels have {total} bytes, more than the {self._config.max_fetch_bytes} "
                "that this worker fetches for one request"
            )
        elsewhere = [file.project for file in files if _origin(file.url) not in rules.origins]
        if elsewhere:
            await self._learn(rules, request, elsewhere)
        index = request.index
        asked = [
            {
                "name": file.name,
                "url": file.url,
                "headers": index.headers if _origin(file.url) == index.origin else {},
                "max_bytes": self._config.max_file_bytes,
            }
            for file in files
        ]
        if not asked:
            return
        answer = await guest.ask({"do": "download", "files": asked})
        for file in answer.get("files", []):
            if "error" in file:
                words = index.hide_secrets(f"{file.get('name')}: {file['error']}")
                fetcher_words.raise_for_download(index, words, proxy.counters)

    async def _take_in(
        self,
        job: Path,
        request: FetchRequest,
        resolution: Resolution,
        missing: Sequence[RemoteFile],
    ) -> View:
        wheels = {wheel.sha256: wheel.name for wheel in resolution.wheels if wheel.sha256}
        for wheel in missing:
            staged = StagedWheel(wheel.name, wheel.sha256)
            sha256 = await asyncio.to_thread(
                self._wheelhouse.take_in, job, staged, request.index.id
            )
            wheels[sha256] = wheel.name
        view = await asyncio.to_thread(
            self._wheelhouse.add_view,
            request.key,
            wheels,
            request.index.id,
            pinned=request.pinned,
        )
        if view is None:
            raise LimitExceeded(
                "the wheelhouse is too small for what was asked for; raise WHEELHOUSE_BYTES"
            )
        return view

    async def _learn(
        self, rules: EgressRules, request: FetchRequest, projects: Sequence[NormalizedName]
    ) -> bool:
        """Ask the index where it keeps its files; True when that is more than was known."""
        known = self._linked.get(request.index.id, set())
        found = set(known)
        for project in dict.fromkeys(projects[:_PAGES_ASKED]):
            found |= await index_links.linked_origins(request.index, [project], self._authorities)
            if found - known:
                break
        if found:
            self._linked[request.index.id] = found
            rules.allow_linked(found)
        return bool(found - known)

    @asynccontextmanager
    async def _job(self) -> AsyncIterator[Path]:
        """Make a directory for one fetch, owned by the fetcher's user, and remove it after."""
        job = self._config.staging / secrets.token_hex(8)
        job.mkdir(mode=0o700)
        try:
            if (owner := self._config.fetch_identity) is not None:
                os.chown(job, owner.uid, owner.gid)
            yield job
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, job, ignore_errors=True))

    def _open(self) -> None:
        self._wheelhouse.open()
        self._config.staging.mkdir(parents=True, exist_ok=True)
        os.chmod(self._config.staging, 0o711)
        for left in self._config.staging.iterdir():
            shutil.rmtree(left, ignore_errors=True)


_NO_INDEX = Index(url="", public_url="", host="", port=0)


def _origin(url: str) -> Origin:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Corrupt(f"the package index links to {url[:200]!r}, which is no URL") from None
    return (parts.hostname or "").lower().rstrip("."), port
