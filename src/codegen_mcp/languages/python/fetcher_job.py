"""One fetch at work: a directory, a proxy, a sandbox, and the questions that are asked of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.utils import NormalizedName

from codegen_mcp.core.errors import Corrupt, LimitExceeded
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python import fetcher_words, index_links
from codegen_mcp.languages.python.builder import Stub
from codegen_mcp.languages.python.fetcher_lock import RemoteFile, read_lock
from codegen_mcp.languages.python.fetcher_sandbox import FetchSandbox, Message, open_directory
from codegen_mcp.languages.python.index_proxy import IndexProxy, ProxyCounters
from codegen_mcp.languages.python.index_rules import EgressRules, Origin
from codegen_mcp.languages.python.packages import Index, PackageConfig
from codegen_mcp.languages.python.wheelhouse import StagedFile, Wheelhouse

_PAGES_ASKED = 5
"""Pages read to learn where files lie; one is enough for most indexes."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What uv made of some requirements."""

    wheels: Sequence[RemoteFile]
    words: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTools:
    """What every job of a fetcher uses."""

    config: PackageConfig
    wheelhouse: Wheelhouse
    authorities: Path | None
    linked: dict[str, set[Origin]]
    """Index id to the servers that its pages link to, as learnt so far."""


class FetchJob:
    """Made by ``open_job``, for one index and one interpreter."""

    def __init__(
        self,
        tools: FetchTools,
        index: Index,
        interpreter: Interpreter,
        directory: Path,
        rules: EgressRules,
        proxy: IndexProxy,
        guest: FetchSandbox,
    ) -> None:
        self._tools = tools
        self._index = index
        self._interpreter = interpreter
        self._directory = directory
        self._rules = rules
        self._proxy = proxy
        self._guest = guest

    @property
    def counters(self) -> ProxyCounters:
        """What went through the proxy."""
        return self._proxy.counters

    async def resolve(
        self, requirements: Sequence[str], *, no_deps: bool = False, stubs: Sequence[Stub] = ()
    ) -> Resolution:
        """Resolve without building; a failure of the resolver is a result.

        Raises:
            StoreUnavailable: The index does not answer.
            LimitExceeded: More came in than the settings allow.
        """
        question = {
            "do": "compile",
            "requirements": list(requirements),
            "arguments": ["--no-deps"] if no_deps else [],
            "env": {"UV_DEFAULT_INDEX": self._index.url},
            "stubs": {stub.file_name: base64.b64encode(stub.content()).decode() for stub in stubs},
        }
        answer = await self._guest.ask(question)
        if answer.get("code") != 0 and self.counters.refused:
            projects = fetcher_words.projects_in(str(answer.get("words", "")))
            if await self.learn(projects):
                self.counters.refused.clear()
                answer = await self._guest.ask(question)
        words = self._index.hide_secrets(str(answer.get("words", "")))
        if answer.get("code") != 0:
            fetcher_words.raise_if_unavailable(self._index, words, self.counters)
            return Resolution((), words, int(answer.get("code") or 1))
        lock = str(answer.get("lock", ""))
        return Resolution(await asyncio.to_thread(read_lock, lock, self._interpreter), words, 0)

    def missing(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Return those that the wheelhouse does not have."""
        return [
            file for file in files if not file.sha256 or not self._tools.wheelhouse.has(file.sha256)
        ]

    async def bring(self, files: Sequence[RemoteFile]) -> Mapping[str, str]:
        """Download what is missing and take it in; returns sha256 to file name of all.

        Raises:
            StoreUnavailable: A file cannot be had.
            LimitExceeded: It is too much.
            Corrupt: A file is not what the index says.
        """
        missing = self.missing(files)
        await self._download(missing)
        known = {file.sha256: file.name for file in files if file not in missing}
        for file in missing:
            staged = StagedFile(file.name, file.sha256)
            sha256 = await asyncio.to_thread(
                self._tools.wheelhouse.take_in, self._directory, staged, self._index.id
            )
            known[sha256] = file.name
        return known

    async def sources(self, project: NormalizedName) -> Sequence[Mapping[str, object]]:
        """List a project's source distributions as the guest read them; hostile."""
        question = {
            "do": "sources",
            "url": self._index.page(project),
            "headers": self._index.headers,
        }
        files = (await self._guest.ask(question)).get("files")
        return [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []

    async def pyproject(self, file_name: str) -> str:
        """Read ``pyproject.toml`` out of a downloaded source distribution."""
        answer = await self._guest.ask({"do": "pyproject", "name": file_name})
        return str(answer.get("text", ""))

    async def learn(self, projects: Sequence[NormalizedName]) -> bool:
        """Ask the index where it keeps its files; True when that is more than was known."""
        return await _learn(self._tools, self._index, self._rules, projects)

    async def _download(self, files: Sequence[RemoteFile]) -> None:
        limit = self._tools.config.max_fetch_bytes
        total = sum(file.size for file in files)
        if total > limit:
            raise LimitExceeded(
                f"the files have {total} bytes, more than the {limit} that this worker fetches "
                "for one request"
            )
        elsewhere = [file.project for file in files if origin(file.url) not in self._rules.origins]
        if elsewhere:
            await self.learn(elsewhere)
        if not files:
            return
        answer = await self._guest.ask({"do": "download", "files": [*map(self._asked, files)]})
        for file in answer.get("files", []):
            if "error" in file:
                words = self._index.hide_secrets(f"{file.get('name')}: {file['error']}")
                fetcher_words.raise_for_download(self._index, words, self.counters)

    def _asked(self, file: RemoteFile) -> Message:
        own = origin(file.url) == self._index.origin
        return {
            "name": file.name,
            "url": file.url,
            "headers": self._index.headers if own else {},
            "max_bytes": self._tools.config.max_file_bytes,
        }


@asynccontextmanager
async def open_job(
    tools: FetchTools, index: Index, interpreter: Interpreter, projects: Sequence[NormalizedName]
) -> AsyncIterator[FetchJob]:
    """Start a sandbox for one fetch; leaving ends it and removes its directory.

    Args:
        tools: The fetcher's.
        index: Where it may go.
        interpreter: For which is resolved, and which runs the guest.
        projects: What will be asked for: their pages tell where the index keeps its files.

    Raises:
        StoreUnavailable: The index does not answer.
    """
    rules = EgressRules(index, tools.config.file_hosts)
    if index.id in tools.linked:
        rules.allow_linked(tools.linked[index.id])
    else:
        await _learn(tools, index, rules, projects)
    owner = tools.config.fetch_identity
    async with open_directory(tools.config) as directory:
        proxy_socket = IndexProxy(
            rules,
            directory / "proxy.sock",
            max_bytes=tools.config.max_fetch_bytes,
            owner=(owner.uid, owner.gid) if owner else None,
        )
        sandbox = FetchSandbox(tools.config, interpreter, directory, tools.authorities)
        async with proxy_socket as proxy, sandbox as guest:
            yield FetchJob(tools, index, interpreter, directory, rules, proxy, guest)


def origin(url: str) -> Origin:
    """Return host and port of a file's URL.

    Raises:
        Corrupt: It has none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Corrupt(f"the package index links to {url[:200]!r}, which is no URL") from None
    return (parts.hostname or "").lower().rstrip("."), port


async def _learn(
    tools: FetchTools, index: Index, rules: EgressRules, projects: Sequence[NormalizedName]
) -> bool:
    known = tools.linked.get(index.id, set())
    found = set(known)
    for project in dict.fromkeys(projects[:_PAGES_ASKED]):
        found |= await index_links.linked_origins(index, [project], tools.authorities)
        if found - known:
            break
    if found:
        tools.linked[index.id] = found
        rules.allow_linked(found)
    return bool(found - known)
