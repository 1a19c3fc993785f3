"""A package index on loopback, sessions in real sandboxes, and an installer between them."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import io
import json
import os
import secrets
import shutil
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import codegen_mcp.sandbox.guest
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import GIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import Argv, Command, Outcome, Stream
from codegen_mcp.languages.base import InstallRequest, InstallResult
from codegen_mcp.languages.python.environment import make_environment
from codegen_mcp.languages.python.fetcher import PackageFetcher
from codegen_mcp.languages.python.fetcher_sandbox import confine
from codegen_mcp.languages.python.guest_install import install_guest
from codegen_mcp.languages.python.installer import UvInstaller
from codegen_mcp.languages.python.installer_seed import InterpreterSeeds
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
from codegen_mcp.languages.python.language import install_uv
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.python.wheelhouse import Wheelhouse
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    TOOLS,
    WHEELS,
    HostIdentity,
    Sandbox,
    SandboxBackend,
    SandboxSpec,
)
from codegen_mcp.sandbox.bubblewrap import BubblewrapBackend, find_bubblewrap
from codegen_mcp.sandbox.volumes.plain import PlainDriver, PlainVolume
from codegen_mcp.sandbox.volumes.space import VolumeConfig

ROOT = os.geteuid() == 0
_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
FIRST_UID = 255_000 + 1_500 * (_SIDE % 7)
"""Of its own for each process of tests: a session without namespaces ends all of its user's."""


def identity(number: int) -> HostIdentity | None:
    """A host user of these tests; none where they do not run as root."""
    return HostIdentity(uid=FIRST_UID + number, gid=FIRST_UID + number) if ROOT else None


FETCHER = identity(999)
FIRST_SESSION = identity(1)


@dataclass
class File:
    """One file of the index, honest unless told otherwise."""

    name: str
    content: bytes
    sha256: str = ""
    yanked: bool = False
    requires_python: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        self.sha256 = self.sha256 or hashlib.sha256(self.content).hexdigest()


@dataclass
class PackageIndex:
    """A PEP 503 and PEP 691 index; what it serves can be changed at any time."""

    url: str = ""
    projects: dict[str, list[File]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    failing: bool = False
    html_only: bool = False
    stalled: threading.Event | None = None

    def add(self, file: File, project: str = "") -> File:
        name = (project or file.name.partition("-")[0]).lower().replace("_", "-")
        self.projects.setdefault(name, []).append(file)
        return file

    def wheel(self, name: str, version: str = "1.0", **options: Any) -> File:
        return self.add(File(**wheel(name, version, **options)))

    def sdist(self, name: str, version: str, files: dict[str, str], **options: Any) -> File:
        return self.add(File(**sdist(name, version, files, **options)))

    def pages(self, project: str) -> int:
        """How often a project's page was asked for."""
        return self.requests.count(f"/simple/{project}/")


def wheel(
    name: str,
    version: str = "1.0",
    *,
    requires: tuple[str, ...] = (),
    files: dict[str, str | bytes] | None = None,
    tag: str = "py3-none-any",
    scripts: dict[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Build a wheel; its module has ``VERSION``."""
    stem = f"{name.replace('-', '_')}-{version}"
    module = name.replace("-", "_")
    content = dict(files or {f"{module}/__init__.py": f"VERSION = {version!r}\n"})
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    content[f"{info}/METADATA"] = metadata + "\nA package.\n"
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    if scripts:
        lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    content[f"{info}/RECORD"] = record
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return {"name": f"{stem}-{tag}.whl", "content": out.getvalue(), **options}


def sdist(name: str, version: str, files: dict[str, str], **options: Any) -> dict[str, Any]:
    """Build a source distribution."""
    stem = f"{name}-{version}"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in files.items():
            data = text.encode()
            entry = tarfile.TarInfo(f"{stem}/{path}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return {"name": f"{stem}.tar.gz", "content": out.getvalue(), **options}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index: PackageIndex

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        index = self.index
        index.requests.append(self.path)
        if index.stalled is not None:
            index.stalled.wait(30)
        if index.failing:
            return self._send(503, "text/plain", b"down for repairs")
        if self.path in index.redirects:
            return self._send(302, "text/plain", b"", Location=index.redirects[self.path])
        kind, _, name = self.path.strip("/").partition("/")
        if kind == "simple" and name in index.projects:
            return self._page(name)
        for file in (file for files in index.projects.values() for file in files):
            if self.path == f"/files/{file.name}":
                return self._send(200, "application/octet-stream", file.content)
        return self._send(404, "text/plain", b"no such thing")

    def _page(self, name: str) -> None:
        files = self.index.projects[name]
        if "json" in self.headers.get("Accept", "") and not self.index.html_only:
            body = {
                "meta": {"api-version": "1.0"},
                "name": name,
                "files": [
                    {
                        "filename": file.name,
                        "url": file.url or f"/files/{file.name}",
                        "hashes": {"sha256": file.sha256},
                        "yanked": file.yanked,
                        "requires-python": file.requires_python or None,
                    }
                    for file in files
                ],
            }
            kind = "application/vnd.pypi.simple.v1+json"
            return self._send(200, kind, json.dumps(body).encode())
        lines = "".join(
            f'<a href="{file.url or f"/files/{file.name}"}#sha256={file.sha256}"'
            + (' data-yanked=""' if file.yanked else "")
            + f' data-requires-python="{html.escape(file.requires_python)}">{file.name}</a><br>'
            for file in files
        )
        return self._send(200, "text/html", f"<!DOCTYPE html><body>{lines}</body>".encode())

    def _send(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def serve_index() -> Iterator[Callable[[], PackageIndex]]:
    """Start an index; each call starts another."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread, PackageIndex]] = []

    def start() -> PackageIndex:
        index = PackageIndex()
        handler = type("Handler", (_Handler,), {"index": index})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
        running.append((server, thread, index))
        return index

    yield start
    for server, thread, index in running:
        if index.stalled is not None:
            index.stalled.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def index(serve_index: Callable[[], PackageIndex]) -> PackageIndex:
    return serve_index()


class Output:
    """Keeps what a run prints."""

    def __init__(self) -> None:
        self.streams: dict[Stream, bytearray] = {stream: bytearray() for stream in Stream}

    async def write(self, stream: Stream, data: bytes) -> None:
        self.streams[stream] += data

    def omit(self, stream: Stream, count: int) -> None:
        raise AssertionError(f"{count} bytes of {stream} were omitted")


class Session:
    """A session's volume, and one sandbox for all its runs."""

    def __init__(self, rig: Rig, number: int) -> None:
        self._rig = rig
        self.identity = identity(number)
        self._directory = rig.state / "sessions" / str(number)
        self._directory.mkdir(parents=True)
        self.root = self._directory / "volume"
        self.venv = self.root / "venv"
        self.runs: list[Command] = []
        self.kill_after_s: float | None = None
        self._sandbox: Sandbox | None = None
        self._volume: PlainVolume | None = None

    async def open(self) -> None:
        driver = PlainDriver(VolumeConfig(state_directory=self._rig.state, overcommit=True))
        self._volume = await driver.create(self._directory, 1 * GIB, self.identity)
        make_environment(self._rig.interpreter, self.venv, self.identity)
        self._sandbox = await self._rig.host.backend.create(
            SandboxSpec(
                sandbox_id=secrets.token_hex(8),
                volume=self._volume,
                interpreter=self._rig.interpreter,
                limits=ResourceLimits(),
                identity=self.identity,
                cgroup=None,
                read_only={TOOLS: self._rig.config.uv.parent, WHEELS: self._rig.config.wheelhouse},
            )
        )

    async def close(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.aclose()
        if self._volume is not None:
            await self._volume.detach()

    @property
    def site_packages(self) -> Path:
        return self.venv / self._rig.interpreter.site_packages

    def names(self) -> set[str]:
        """Everything in the environment, site-packages and bin, but bytecode."""
        found = {
            name
            for path in (self.venv, self.site_packages, self.venv / "bin")
            for name in os.listdir(path)
        }
        return found - {"__pycache__"}

    async def run(self, command: Command) -> tuple[Outcome, bytes, bytes]:
        self.runs.append(command)
        assert self._sandbox is not None
        if self.kill_after_s is not None:
            limits = dataclasses.replace(command.limits, timeout_s=self.kill_after_s)
            command, self.kill_after_s = dataclasses.replace(command, limits=limits), None
        output = Output()
        outcome = await self._sandbox.run(command, output)
        return (outcome, *(bytes(output.streams[stream]) for stream in Stream))

    async def python(self, code: str) -> str:
        """Run code; its output, errors included."""
        limits = RunLimits(timeout_s=30, output_bytes=1 << 20)
        _, out, err = await self.run(Command(program=Argv(("python", "-c", code)), limits=limits))
        return (out + err).decode().strip()

    async def install(self, *packages: str, timeout_s: float = 60, **request: Any) -> InstallResult:
        async def progress(percent: int, stage: str, message: str) -> None:
            self._rig.progress.append((percent, stage, message))

        return await self._rig.installer.install(
            InstallRequest(packages=packages, **request),
            interpreter=self._rig.interpreter,
            venv=self.venv,
            run=self.run,
            progress=progress,
            env={},
            timeout_s=timeout_s,
        )


@dataclass(frozen=True)
class Host:
    """What all tests share: an interpreter, the guest's program, uv."""

    state: Path
    interpreter: Interpreter
    backend_config: BackendConfig
    backend: SandboxBackend
    seeds: InterpreterSeeds
    fetcher: HostIdentity | None = FETCHER


@dataclass
class Rig:
    """An installer over a state directory, as ``PythonLanguage`` wires it, with sessions."""

    state: Path
    config: PackageConfig
    wheelhouse: Wheelhouse
    fetcher: PackageFetcher
    installer: UvInstaller
    host: Host
    progress: list[tuple[int, str, str]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    first: int = 1

    @property
    def interpreter(self) -> Interpreter:
        return self.host.interpreter

    async def session(self) -> Session:
        session = Session(self, self.first + len(self.sessions))
        self.sessions.append(session)
        await session.open()
        return session


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    state = Path(tempfile.mkdtemp(prefix="codegen-host-"))
    os.chmod(state, 0o711)
    discovery = InterpreterDiscovery(state, identity=FIRST_SESSION)
    found = discovery.discover_now()
    assert found, discovery.refused
    interpreter = found[0]
    source = Path(codegen_mcp.sandbox.guest.__file__).parent
    guest = install_guest(source, state, [interpreter])
    install_uv(state / "tools" / "uv")
    config = BackendConfig(guest_directory=guest, state=state, interpreter=interpreter)
    packages = PackageConfig.below(
        state, bubblewrap=Path(find_bubblewrap()), fetch_identity=FETCHER
    )
    packages.staging.mkdir(mode=0o711)
    os.chmod(packages.staging, 0o711)
    seeds = InterpreterSeeds(packages)
    yield Host(state, interpreter, config, BubblewrapBackend(config), seeds)
    discovery.close()
    shutil.rmtree(state)


@pytest.fixture
async def make_rig(host: Host) -> AsyncIterator[Callable[..., Any]]:
    """Make an installer over its own, or a given, state directory."""
    made: list[Rig] = []

    async def make(*, state: Path | None = None, **settings: Any) -> Rig:
        directory = state or Path(tempfile.mkdtemp(prefix="codegen-packages-"))
        os.chmod(directory, 0o711)
        settings.setdefault("bubblewrap", Path(find_bubblewrap()))
        config = PackageConfig(
            wheelhouse=directory / "wheels",
            staging=directory / "fetch",
            uv=host.state / "tools" / "uv",
            fetch_identity=FETCHER,
            **settings,
        )
        config, _ = await confine(config, host.interpreter)
        wheelhouse = Wheelhouse(
            config.wheelhouse, max_bytes=config.max_bytes, max_file_bytes=config.max_file_bytes
        )
        wheelhouse.open()
        fetcher = PackageFetcher(config, wheelhouse)
        installer = UvInstaller(config, wheelhouse, fetcher, host.seeds)
        rig = Rig(directory, config, wheelhouse, fetcher, installer, host)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        for session in rig.sessions:
            await session.close()
    for state in {rig.state for rig in made}:
        assert list((state / "fetch").iterdir()) == [], "the fetcher left something behind"
        shutil.rmtree(state)


@pytest.fixture
async def rig(make_rig: Callable[..., Any], index: PackageIndex) -> Rig:
    made: Rig = await make_rig(index_urls=(index.url,))
    return made
