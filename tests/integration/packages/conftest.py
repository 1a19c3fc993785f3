"""A package index on loopback, sessions in real sandboxes, and an installer between them."""

from __future__ import annotations

import asyncio
import hashlib
import html
import io
import json
import os
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

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import RunLimits
from codegen_mcp.core.task import Argv, Command, EndedBy, Outcome
from codegen_mcp.languages.base import InstallRequest, InstallResult
from codegen_mcp.languages.python.fetcher import PackageFetcher
from codegen_mcp.languages.python.installer import UvInstaller
from codegen_mcp.languages.python.language import PythonLanguage
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.sandbox.base import HostIdentity

ROOT = os.geteuid() == 0
FETCHER_UID = 265_500
FIRST_SESSION_UID = 264_000


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


class Session:
    """A session's volume and a sandbox around each of its runs."""

    def __init__(self, rig: Rig, number: int) -> None:
        self._rig = rig
        self.identity = HostIdentity(uid=FIRST_SESSION_UID + number, gid=FIRST_SESSION_UID + number)
        self.root = rig.state / "sessions" / str(number) / "volume"
        self.venv = self.root / "venv"
        (self.root / "workspace").mkdir(parents=True)
        if ROOT:
            os.chown(self.root / "workspace", self.identity.uid, self.identity.gid)
        rig.language.make_environment(rig.interpreter, self.venv, self.identity if ROOT else None)
        self.runs: list[Command] = []
        self.kill_after_s: float | None = None

    @property
    def site_packages(self) -> Path:
        return self.venv / self._rig.interpreter.site_packages

    def names(self) -> set[str]:
        """Everything in site-packages and bin, but bytecode."""
        found = set(os.listdir(self.site_packages)) | set(os.listdir(self.venv / "bin"))
        return found - {"__pycache__"}

    async def run(self, command: Command) -> tuple[Outcome, bytes, bytes]:
        self.runs.append(command)
        assert isinstance(command.program, Argv)
        argv = ["bwrap", "--unshare-all", "--uid", "1000", "--gid", "1000", "--die-with-parent"]
        argv += ["--clearenv", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"]
        argv += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
        argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for inside in ("workspace", "venv"):
            argv += ["--bind", str(self.root / inside), f"/{inside}"]
        for tree in self._rig.interpreter.trees:
            argv += ["--ro-bind", str(tree), str(tree)]
        for path, source in self._rig.language.read_only_mounts().items():
            argv += ["--ro-bind", str(source), path]
        env = {"PATH": "/venv/bin:/usr/bin:/bin", "HOME": "/workspace", **command.env}
        for name, value in env.items():
            argv += ["--setenv", name, value]
        argv += ["--chdir", "/workspace", "--", *command.program.argv]
        if ROOT:
            uid = str(self.identity.uid)
            argv = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", *argv]
        process = await asyncio.create_subprocess_exec(*argv, stdin=-1, stdout=-1, stderr=-1)
        limit = min(command.limits.timeout_s, self.kill_after_s or 3600)
        try:
            async with asyncio.timeout(limit):
                out, err = await process.communicate(command.stdin)
        except TimeoutError:
            process.kill()
            await process.communicate()
            return Outcome(ended_by=EndedBy.TIMEOUT, exit_code=124, remedy="slow"), b"", b""
        except asyncio.CancelledError:
            process.kill()
            await process.communicate()
            raise
        code = process.returncode or 0
        if code < 0:
            return Outcome(ended_by=EndedBy.SIGNAL, exit_code=128 - code, signal=-code), out, err
        return Outcome(ended_by=EndedBy.EXIT, exit_code=code), out, err

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


@dataclass
class Rig:
    """A language with its installer, as a worker wires them."""

    state: Path
    config: PackageConfig
    language: PythonLanguage
    interpreter: Interpreter
    progress: list[tuple[int, str, str]] = field(default_factory=list)
    sessions: int = 0

    @property
    def installer(self) -> UvInstaller:
        return self.language.installer

    @property
    def fetcher(self) -> PackageFetcher:
        return self.language.fetcher

    def session(self) -> Session:
        self.sessions += 1
        return Session(self, self.sessions)


def package_config(state: Path, **settings: Any) -> PackageConfig:
    settings.setdefault("bubblewrap", Path(shutil.which("bwrap") or "/usr/bin/bwrap"))
    if ROOT:
        settings.setdefault("fetch_identity", HostIdentity(uid=FETCHER_UID, gid=FETCHER_UID))
    return PackageConfig.below(state, **settings)


@pytest.fixture
async def make_rig() -> AsyncIterator[Callable[..., Any]]:
    """Make a language over its own state directory."""
    made: list[Rig] = []

    async def make(*, state: Path | None = None, **settings: Any) -> Rig:
        directory = state or Path(tempfile.mkdtemp(prefix="codegen-packages-"))
        os.chmod(directory, 0o711)
        config = package_config(directory, **settings)
        language = PythonLanguage(
            directory,
            packages=config,
            identity=HostIdentity(uid=FIRST_SESSION_UID, gid=FIRST_SESSION_UID) if ROOT else None,
        )
        interpreters = await language.discover()
        rig = Rig(directory, config, language, interpreters[0])
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.language.close()
        assert list((rig.state / "fetch").iterdir()) == [], "the fetcher left something behind"
        shutil.rmtree(rig.state, ignore_errors=True)


@pytest.fixture
async def rig(make_rig: Callable[..., Any], index: PackageIndex) -> Rig:
    made: Rig = await make_rig(index_urls=(index.url,))
    return made
