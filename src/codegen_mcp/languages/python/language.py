"""Python as a language of sessions."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from uv import find_uv_bin

from codegen_mcp.core.errors import SandboxUnavailable, WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.environment import make_environment
from codegen_mcp.languages.python.fetcher import PackageFetcher
from codegen_mcp.languages.python.fetcher_sandbox import confine
from codegen_mcp.languages.python.installer import UvInstaller
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.python.wheelhouse import Wheelhouse
from codegen_mcp.sandbox.base import TOOLS, WHEELS, HostIdentity

_log = structlog.get_logger()


class PythonLanguage:
    """Implements ``languages.base.Language``; ``discover`` first, ``close`` at the end.

    Args:
        state: The worker's state directory.
        packages: How packages get in.
        interpreters: Interpreters that the operator names beside those that are found.
        identity: A user that sessions run as, for a root worker.
    """

    name = "python"

    def __init__(
        self,
        state: Path,
        *,
        packages: PackageConfig,
        interpreters: Sequence[Path] = (),
        identity: HostIdentity | None = None,
    ) -> None:
        self._packages = packages
        self._discovery = InterpreterDiscovery(state, explicit=interpreters, identity=identity)
        self._wheelhouse = Wheelhouse(
            packages.wheelhouse,
            max_bytes=packages.max_bytes,
            max_file_bytes=packages.max_file_bytes,
        )
        self._installer: UvInstaller | None = None
        self.weakness = ""
        """What is missing from the package fetcher's confinement; empty when nothing is."""

    @property
    def refused(self) -> Sequence[tuple[Path, str]]:
        """Interpreters that were found and cannot be used, with the reason."""
        return self._discovery.refused

    async def discover(self) -> Sequence[Interpreter]:
        """Find interpreters; make the directories that sandboxes mount.

        Raises:
            SandboxUnavailable: uv is not installed beside the worker.
            Corrupt: The wheelhouse was written by a newer version.
        """
        found, _, _ = await asyncio.gather(
            self._discovery.discover(),
            asyncio.to_thread(install_uv, self._packages.uv),
            asyncio.to_thread(self._wheelhouse.open),
        )
        packages = self._packages
        if found:
            packages, self.weakness = await confine(packages, found[0])
            if self.weakness and not packages.offline:
                _log.warning("packages.fetcher_weak", reason=self.weakness)
        self._installer = UvInstaller(
            packages, self._wheelhouse, PackageFetcher(packages, self._wheelhouse)
        )
        for interpreter in found:
            await self._installer.prepare(interpreter)
        return found

    def make_environment(
        self, interpreter: Interpreter, venv: Path, identity: HostIdentity | None
    ) -> None:
        """Write an empty environment."""
        make_environment(interpreter, venv, identity)

    @property
    def installer(self) -> UvInstaller:
        """How packages get in; after ``discover``."""
        if self._installer is None:
            raise WorkerError("the language's interpreters were not discovered yet")
        return self._installer

    def read_only_mounts(self) -> Mapping[str, Path]:
        """Uv and the wheelhouse."""
        return {TOOLS: self._packages.uv.parent, WHEELS: self._packages.wheelhouse}

    def close(self) -> None:
        """Unmount what was mounted for interpreters; idempotent."""
        self._discovery.close()


def install_uv(target: Path) -> None:
    """Copy uv to where every session's user can run it; the worker's own may lie in a closed home.

    Raises:
        SandboxUnavailable: It is not installed.
    """
    try:
        source = Path(find_uv_bin())
    except FileNotFoundError as error:
        raise SandboxUnavailable(
            f"uv is not installed beside the worker ({error}); install codegen-mcp[server]"
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(target.parent, 0o755)
    wanted = source.stat()
    if target.exists():
        found = target.stat()
        if (found.st_size, found.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
            return
    temporary = target.with_name(f".{secrets.token_hex(8)}")
    try:
        shutil.copyfile(source, temporary)
        os.utime(temporary, ns=(wanted.st_atime_ns, wanted.st_mtime_ns))
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
