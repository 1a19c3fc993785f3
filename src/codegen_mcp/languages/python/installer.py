"""Installs packages into a session: from the wheelhouse, with uv, inside the session's sandbox."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from packaging.utils import NormalizedName, canonicalize_name

from codegen_mcp.core.errors import StoreUnavailable, WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import MIB, RunLimits
from codegen_mcp.core.task import Argv, Command, EndedBy, Outcome
from codegen_mcp.languages.base import (
    CaptureRun,
    InstalledPackage,
    InstallRequest,
    InstallResult,
    Progress,
)
from codegen_mcp.languages.python import fetcher_words
from codegen_mcp.languages.python.fetcher import Fetched, FetchRequest, PackageFetcher
from codegen_mcp.languages.python.installer_dist_info import (
    list_distributions,
    read_distributions,
)
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.python.specifiers import Specifier, parse_specifiers
from codegen_mcp.languages.python.wheelhouse import View, Wheelhouse
from codegen_mcp.sandbox.base import TOOLS, VENV, WHEELS

_log = structlog.get_logger()

_GUEST = Path(__file__).with_name("installer_guest.py").read_text()
_CLEAR_S = 10.0
_OUTPUT_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the guest said; hostile."""

    changes: Sequence[NormalizedName] = ()
    venv: str = VENV


class UvInstaller:
    """Implements ``languages.base.Installer``."""

    def __init__(
        self, config: PackageConfig, wheelhouse: Wheelhouse, fetcher: PackageFetcher
    ) -> None:
        self._config = config
        self._wheelhouse = wheelhouse
        self._fetcher = fetcher

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
        deadline = time.monotonic() + timeout_s
        await progress(5, "resolving", ", ".join(one.text for one in specifiers)[:500])
        try:
            async with asyncio.timeout(timeout_s):
                fetched, unavailable = await self._view(fetch, progress)
        except TimeoutError:
            return _timed_out(specifiers, timeout_s)
        if fetched.view is None:
            words = fetcher_words.last_lines(fetched.words)
            return _failure(specifiers, words, fetched.exit_code)
        session = _Session(interpreter, venv, run, max(1.0, deadline - time.monotonic()))
        await progress(60, "installing", f"{len(fetched.view.files)} wheels")
        result = await self._install(session, fetch, fetched.view)
        ended_itself = result.outcome is None or result.outcome.ended_by is EndedBy.EXIT
        if result.exit_code and unavailable is not None and ended_itself:
            raise unavailable
        await progress(100, "done", f"{len(result.installed)} packages")
        return result

    async def _view(
        self, fetch: FetchRequest, progress: Progress
    ) -> tuple[Fetched, StoreUnavailable | None]:
        """Return the wheels to install from, and why they may not suffice."""
        if self._config.offline:
            view = await asyncio.to_thread(self._fetcher.everything, fetch)
            return Fetched(view), None
        try:
            return await self._fetcher.fetch(fetch, progress), None
        except StoreUnavailable as error:
            stale = self._fetcher.stale(fetch)
            held = stale or await asyncio.to_thread(self._fetcher.everything, fetch)
            return Fetched(held), error

    async def _install(self, session: _Session, fetch: FetchRequest, view: View) -> InstallResult:
        site = session.interpreter.site_packages
        before = await asyncio.to_thread(list_distributions, session.venv, site)
        flags = ["--no-deps"] if fetch.no_deps else []
        flags += ["--upgrade"] if fetch.upgrade else []
        with self._wheelhouse.using(view) as wheels:
            places = self._places(session.venv, wheels)
            job = {
                "do": "install",
                "places": places,
                "flags": flags,
                "requirements": [one.text for one in fetch.specifiers],
                "sources": [],
            }
            outcome, stdout, stderr = await self._run(session, job, places)
        reply = _read_reply(stdout)
        words = stderr.decode("utf-8", "replace")
        if outcome.ended_by is not EndedBy.EXIT or outcome.exit_code != 0:
            words = fetcher_words.last_lines(" ".join(filter(None, (words, outcome.remedy))))
            return replace(
                _failure(fetch.specifiers, words, outcome.exit_code or 1), outcome=outcome
            )
        return await asyncio.to_thread(
            _describe, session, fetch.specifiers, before, reply, words, outcome
        )

    async def _run(
        self, session: _Session, job: Mapping[str, Any], places: Sequence[Mapping[str, str]]
    ) -> tuple[Outcome, bytes, bytes]:
        """Run the guest's program; what a killed one left behind is cleared at once."""
        ended = False
        try:
            answer = await session.run(_command(job, session.timeout_s))
            ended = answer[0].ended_by is EndedBy.EXIT or answer[0].sandbox_lost
        finally:
            if not ended:
                await self._clear(session, places)
        return answer

    async def _clear(self, session: _Session, places: Sequence[Mapping[str, str]]) -> None:
        """Free the space of an install that was cut short; the next one would do it too."""
        try:
            async with asyncio.timeout(_CLEAR_S):
                await session.run(_command({"do": "clear", "places": places}, _CLEAR_S))
        except (WorkerError, TimeoutError) as error:
            _log.info("packages.clear_failed", reason=str(error))

    def _places(self, venv: Path, wheels: str) -> list[dict[str, str]]:
        """Paths in a sandbox with mounts, and without (the process backend)."""
        return [
            {"venv": VENV, "uv": f"{TOOLS}/uv", "wheels": f"{WHEELS}/{wheels}"},
            {
                "venv": str(venv),
                "uv": str(self._config.uv),
                "wheels": str(self._config.wheelhouse / wheels),
            },
        ]


@dataclass(frozen=True, slots=True)
class _Session:
    """The session to install into."""

    interpreter: Interpreter
    venv: Path
    run: CaptureRun
    timeout_s: float


def _command(job: Mapping[str, Any], timeout_s: float) -> Command:
    """Return the run; variables that change how programs start are emptied for it."""
    return Command(
        program=Argv(("python", "-I", "-S", "-B", "-c", _GUEST)),
        limits=RunLimits(timeout_s=timeout_s, output_bytes=_OUTPUT_BYTES),
        env={"LD_PRELOAD": "", "LD_LIBRARY_PATH": ""},
        stdin=json.dumps(job).encode(),
    )


def _read_reply(stdout: bytes) -> _Reply:
    """Read the guest's line and uv's JSON in it; whatever is odd is as if it were not there."""
    try:
        reply = json.loads(stdout)
        venv = str(reply["venv"])[:4096]
        changes = json.loads(reply["json"])["changes"]
        names = [
            canonicalize_name(change["name"], validate=True)
            for change in changes[:1000]
            if change["action"] == "installed"
        ]
    except (ValueError, KeyError, TypeError):
        return _Reply()  # the environment itself tells; another schema costs only reinstalls
    return _Reply(names, venv)


def _describe(
    session: _Session,
    specifiers: Sequence[Specifier],
    before: Mapping[NormalizedName, str],
    reply: _Reply,
    words: str,
    outcome: Outcome,
) -> InstallResult:
    """Say what is installed now, by the environment; blocks for its reads."""
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
        outcome=outcome,
    )


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
