"""Installs packages into a session: from the wheelhouse, with uv, inside the session's sandbox."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import NormalizedName, canonicalize_name

from codegen_mcp.core.errors import Corrupt, StoreUnavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.task import EndedBy, Outcome
from codegen_mcp.languages.base import (
    CaptureRun,
    InstalledPackage,
    InstallRequest,
    InstallResult,
    Progress,
)
from codegen_mcp.languages.python import builder, fetcher_words
from codegen_mcp.languages.python.fetcher import Fetched, FetchRequest, PackageFetcher
from codegen_mcp.languages.python.installer_dist_info import (
    list_distributions,
    read_distributions,
)
from codegen_mcp.languages.python.installer_seed import InterpreterSeeds
from codegen_mcp.languages.python.installer_session import GUEST, Answer, InstallSession
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.python.specifiers import Specifier, parse_specifier, parse_specifiers
from codegen_mcp.languages.python.wheelhouse import Wheelhouse
from codegen_mcp.languages.python.wheelhouse_index import View
from codegen_mcp.sandbox import landlock
from codegen_mcp.sandbox.base import VENV

_LANDLOCK = Path(landlock.__file__).read_text()


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the guest said; hostile."""

    changes: Sequence[NormalizedName] = ()
    venv: str = VENV


@dataclass(frozen=True, slots=True)
class _Supply:
    """The wheels to install from, or why there are none."""

    request: FetchRequest
    fetched: Fetched
    unavailable: StoreUnavailable | None = None
    """Why the index was not asked although it should have been."""
    failure: InstallResult | None = None


class UvInstaller:
    """Implements ``languages.base.Installer``."""

    def __init__(
        self,
        config: PackageConfig,
        wheelhouse: Wheelhouse,
        fetcher: PackageFetcher,
        seeds: InterpreterSeeds | None = None,
    ) -> None:
        self._config = config
        self._wheelhouse = wheelhouse
        self._fetcher = fetcher
        self._seeds = seeds or InterpreterSeeds(config)

    async def prepare(self, interpreter: Interpreter) -> None:
        """Do ahead what the first install would do."""
        await self._seeds.get(interpreter)

    async def install(
        self,
        request: InstallRequest,
        *,
        interpreter: Interpreter,
        venv: Path,
        run: CaptureRun,
        progress: Progress,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> InstallResult:
        """Install, atomically; see ``languages.base.Installer``."""
        specifiers = parse_specifiers(request.packages)
        fetch = FetchRequest(
            specifiers=specifiers,
            index=await self._fetcher.choose_index(request.index_url),
            interpreter=interpreter,
            no_deps=request.no_deps,
            upgrade=request.upgrade,
        )
        session = InstallSession(
            config=self._config,
            interpreter=interpreter,
            venv=venv,
            run=run,
            deadline=time.monotonic() + timeout_s,
        )
        await progress(5, "resolving", ", ".join(one.text for one in specifiers)[:500])
        try:
            async with asyncio.timeout(timeout_s):
                supply = await self._supply(session, fetch, progress)
        except TimeoutError:
            return _timed_out(specifiers, timeout_s)
        except Corrupt as error:  # the index or a build gave what is not to be trusted
            return _failure(specifiers, error.message, 1)
        view = supply.fetched.view
        if supply.failure is not None:
            return supply.failure
        if view is None:
            words = fetcher_words.last_lines(supply.fetched.words)
            return _failure(specifiers, words, supply.fetched.exit_code)
        await progress(60, "installing", f"{len(view.files) + len(supply.request.stubs)} wheels")
        result = await self._install(session, supply.request, view)
        ended_itself = result.outcome is None or result.outcome.ended_by is EndedBy.EXIT
        if result.exit_code and supply.unavailable is not None and ended_itself:
            raise supply.unavailable
        await progress(100, "done", f"{len(result.installed)} packages")
        return result

    async def _supply(
        self, session: InstallSession, fetch: FetchRequest, progress: Progress
    ) -> _Supply:
        """Get the wheels; what has none is built in the session, and resolved with again."""
        good = False
        try:
            while True:
                fetched, unavailable = await self._fetch(fetch, progress)
                good = fetched.view is not None
                lacking = self._lacking(fetch, fetched)
                if not lacking:
                    return _Supply(fetch, fetched, unavailable)
                for project in lacking:
                    made = await self._build(session, fetch, project, progress)
                    if isinstance(made, InstallResult):
                        return _Supply(fetch, fetched, failure=made)
                    fetch = replace(fetch, stubs=(*fetch.stubs, made))
        finally:
            if session.asked and not good:
                await session.clear("views")

    def _lacking(self, fetch: FetchRequest, fetched: Fetched) -> list[NormalizedName]:
        """Return the projects without a wheel that can still be built."""
        if fetched.view is not None or self._config.offline:
            return []
        built = {stub.project for stub in fetch.stubs}
        named = fetcher_words.without_wheel(fetched.words)
        lacking = [project for project in named if project not in built]
        return lacking if len(built) + len(lacking) <= builder.MAX_SOURCES else []

    async def _fetch(
        self, fetch: FetchRequest, progress: Progress
    ) -> tuple[Fetched, StoreUnavailable | None]:
        if self._config.offline:
            return Fetched(await asyncio.to_thread(self._fetcher.everything, fetch)), None
        try:
            return await self._fetcher.fetch(fetch, progress), None
        except StoreUnavailable as error:
            stale = self._fetcher.stale(fetch)
            held = stale or await asyncio.to_thread(self._fetcher.everything, fetch)
            return Fetched(held), error

    async def _build(
        self,
        session: InstallSession,
        fetch: FetchRequest,
        project: NormalizedName,
        progress: Progress,
    ) -> builder.Stub | InstallResult:
        """Build a project's source distribution in the session."""
        asked = [one for one in fetch.specifiers if one.name == project]
        specifier = asked[0] if asked else parse_specifier(project)
        source = await self._fetcher.fetch_source(fetch, specifier, progress)
        if source.view is None:
            words = fetcher_words.last_lines(source.words)
            return replace(_failure(fetch.specifiers, words, source.exit_code), failed=[project])
        await progress(45, "building", source.source)
        job = {"source": source.source, "landlock": _LANDLOCK}
        with self._wheelhouse.using(source.view) as view:
            answer = await session.ask(builder.GUEST, job, view)
        if not answer.good:
            failed = _failed_run(fetch.specifiers, answer, f"building {source.source} failed")
            return replace(failed, failed=[project])
        return builder.read_build(answer.stdout, project)

    async def _install(
        self, session: InstallSession, fetch: FetchRequest, view: View
    ) -> InstallResult:
        site = session.interpreter.site_packages
        before = await asyncio.to_thread(list_distributions, session.venv, site)
        flags = ["--no-deps"] if fetch.no_deps else []
        flags += ["--upgrade"] if fetch.upgrade else []
        job = {
            "do": "install",
            "site": site,
            "flags": flags,
            "requirements": [one.text for one in fetch.specifiers],
            "built": bool(fetch.stubs),
            "seed": await self._seeds.get(session.interpreter),
        }
        with self._wheelhouse.using(view) as path:
            answer = await session.ask(GUEST, job, path)
        if not answer.good:
            return _failed_run(fetch.specifiers, answer, "")
        return await asyncio.to_thread(_describe, session, fetch.specifiers, before, answer)


def _read_reply(stdout: bytes) -> _Reply:
    """Read the guest's first line and uv's JSON below it; what is odd counts as not there."""
    try:
        first, _, rest = stdout.partition(b"\n")
        venv = first.decode()[:4096]
        changes = json.loads(rest.rstrip().rpartition(b"\n")[0])["changes"]
        names = [
            canonicalize_name(change["name"], validate=True)
            for change in changes[:1000]
            if change["action"] == "installed"
        ]
    except (ValueError, KeyError, TypeError):
        return _Reply()  # the environment itself tells; another schema costs only reinstalls
    return _Reply(names, venv)


def _describe(
    session: InstallSession,
    specifiers: Sequence[Specifier],
    before: Mapping[NormalizedName, str],
    answer: Answer,
) -> InstallResult:
    """Say what is installed now, by the environment; blocks for its reads."""
    reply, words = _read_reply(answer.stdout), answer.words
    site = session.interpreter.site_packages
    after = list_distributions(session.venv, site)
    asked = [one.name for one in specifiers]
    changed = {name for name, entry in after.items() if before.get(name) != entry}
    wanted = [*dict.fromkeys([*asked, *sorted(changed | set(reply.changes))])]
    found = read_distributions(
        session.venv, site, [after[name] for name in wanted if name in after]
    )
    location = f"{reply.venv}/{site}"
    installed = [
        InstalledPackage(name=found[name].name, version=found[name].version, location=location)
        for name in wanted
        if name in found
    ]
    missing = [
        one.name for one in specifiers if one.name not in found and one.requirement.marker is None
    ]
    if missing:
        lost = f"not in the environment after the install: {', '.join(missing)}"
        words = "\n".join(filter(None, (words.strip(), lost)))
    return InstallResult(
        installed=installed,
        failed=missing,
        output=fetcher_words.last_lines(words),
        exit_code=1 if missing else 0,
        outcome=answer.outcome,
    )


def _failed_run(specifiers: Sequence[Specifier], answer: Answer, title: str) -> InstallResult:
    parts = (title, answer.words.strip(), answer.outcome.remedy)
    words = fetcher_words.last_lines("\n".join(filter(None, parts)))
    result = _failure(specifiers, words, answer.outcome.exit_code or 1)
    return replace(result, outcome=answer.outcome)


def _failure(specifiers: Sequence[Specifier], words: str, exit_code: int) -> InstallResult:
    names = fetcher_words.names_in(words, [one.name for one in specifiers])
    return InstallResult(installed=(), failed=names, output=words, exit_code=exit_code)


def _timed_out(specifiers: Sequence[Specifier], timeout_s: float) -> InstallResult:
    remedy = (
        f"fetching took longer than {timeout_s:g} s and the environment is as before; try again "
        "with a longer timeout"
    )
    return InstallResult(
        installed=(),
        failed=[one.name for one in specifiers],
        output=remedy,
        exit_code=124,
        outcome=Outcome(ended_by=EndedBy.TIMEOUT, exit_code=124, remedy=remedy),
    )
