"""Finds the interpreters of this host that a session's user can run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.environment import make_template, site_packages
from codegen_mcp.languages.python.interpreter_probe import Facts, NotUsable, ask
from codegen_mcp.languages.python.interpreter_trees import (
    bind_read_only,
    check_contents,
    first_closed,
    needed_trees,
    unbind,
)
from codegen_mcp.sandbox.base import HostIdentity

log = structlog.get_logger()

SYSTEM_DIRECTORIES = (Path("/usr/bin"), Path("/usr/local/bin"))


class InterpreterDiscovery:
    """Finds and probes interpreters, best first; makes their templates.

    Order: the named ones, the system's (its ``python3`` before the others, newest first), the
    worker's own. The first of a series (``python3.11``) has its name; later ones are refused.

    Args:
        state: The state directory; templates and mounts are made below it.
        explicit: Interpreters named by the operator.
        identity: A user that sessions run as, for a root worker; None is the worker's own user.
        system_directories: Where the system's interpreters are looked for.
    """

    def __init__(
        self,
        state: Path,
        *,
        explicit: Sequence[Path] = (),
        identity: HostIdentity | None = None,
        system_directories: Sequence[Path] = SYSTEM_DIRECTORIES,
    ) -> None:
        self._state = state
        self._explicit = tuple(explicit)
        self._identity = identity if os.geteuid() == 0 else None
        self._system = tuple(system_directories)
        self._mounted: list[Path] = []
        self.refused: list[tuple[Path, str]] = []
        """(path, reason) of each that was found and cannot be used."""

    async def discover(self) -> list[Interpreter]:
        """Return the usable interpreters, best first; the rest is in ``refused``."""
        return await asyncio.to_thread(self.discover_now)

    def discover_now(self) -> list[Interpreter]:
        """Do the same, blocking."""
        self.refused.clear()
        found: dict[str, Interpreter] = {}
        seen: set[Path] = set()
        for path in self._candidates():
            real = Path(os.path.realpath(path))
            if real in seen:
                continue
            seen.add(real)
            try:
                facts = self._learn(path)
                if facts.executable in seen and facts.executable != real:
                    continue
                seen.add(facts.executable)
                name = f"python{facts.series}"
                if name in found:
                    raise NotUsable(f"{name} is already {str(found[name].executable)!r}")
                found[name] = self._prepare(facts)
            except NotUsable as error:
                self.refused.append((path, str(error)))
                log.info("interpreter.refused", path=str(path), reason=str(error))
        return list(found.values())

    def close(self) -> None:
        """Unmount what was mounted for sessions; idempotent."""
        while self._mounted:
            unbind(self._mounted.pop())

    def _candidates(self) -> Iterator[Path]:
        yield from (Path(os.path.abspath(path)) for path in self._explicit)
        for directory in self._system:
            versioned = [
                (int(path.name.partition(".")[2]), path)
                for path in directory.glob("python3.*")
                if path.name.partition(".")[2].isdigit()
            ]
            if (directory / "python3").exists():
                yield directory / "python3"
            yield from (path for _, path in sorted(versioned, reverse=True))
        yield Path(sys.executable)

    def _learn(self, path: Path) -> Facts:
        """Ask the given one, then the base interpreter that it leads to."""
        facts = ask(path, self._visitor(path))
        if facts.executable != path:
            facts = ask(facts.executable, self._visitor(facts.executable))
        return facts

    def _visitor(self, path: Path) -> HostIdentity | None:
        """Return whom to run it as: sessions' user where that can get there at all."""
        if self._identity is None or first_closed(path, self._identity) is not None:
            return None
        real = Path(os.path.realpath(path))
        return None if first_closed(real, self._identity) is not None else self._identity

    def _prepare(self, facts: Facts) -> Interpreter:
        trees = needed_trees(facts)
        sources = self._make_reachable(facts, trees)
        template = make_template(
            self._state / "templates",
            executable=facts.executable,
            series=facts.series,
            version=facts.version,
        )
        python = template / "bin" / "python"
        if self._identity is not None and (closed := first_closed(python, self._identity)):
            raise NotUsable(
                f"sessions cannot reach its template {str(template)!r}; try: chmod o+x {closed}"
            )
        started = ask(python, None if sources else self._identity)
        if started.prefix != template or started.version != facts.version:
            raise NotUsable(f"it does not start as an environment from {str(template)!r}")
        return Interpreter(
            language="python",
            name=f"python{facts.series}",
            version=facts.version,
            executable=facts.executable,
            trees=trees,
            sources=sources,
            site_packages=site_packages(facts.series),
            template=template,
        )

    def _make_reachable(self, facts: Facts, trees: Sequence[Path]) -> tuple[tuple[Path, Path], ...]:
        """Return the trees that must be mounted from elsewhere, and from where."""
        if self._identity is None:
            return ()
        check_contents(facts, trees, self._identity)
        sources: list[tuple[Path, Path]] = []
        for tree in trees:
            if first_closed(tree, self._identity) is None:
                continue
            bound = bind_read_only(tree, self._state / "interpreters")
            if bound not in self._mounted:
                self._mounted.append(bound)
            sources.append((tree, bound))
        return tuple(sources)
