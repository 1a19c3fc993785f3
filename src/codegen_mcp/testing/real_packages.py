"""Packages for the clients of package indexes, made of what this machine has."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path


def installed_wheel(name: str) -> tuple[str, bytes]:
    """Pack an installed pure package as the wheel that it came from: file name and content."""
    found = distribution(name)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in found.files or ():
            inside = str(file)
            if inside.startswith("..") or "__pycache__" in inside or inside.endswith("INSTALLER"):
                continue
            archive.writestr(inside, Path(str(file.locate())).read_bytes())
    return f"{found.name}-{found.version}-py3-none-any.whl", out.getvalue()


def index_answer(wheels: dict[str, bytes], path: str) -> bytes:
    """Return what a simple index (PEP 503) has at a path; empty for what it lacks."""
    kind, _, name = path.strip("/").partition("/")
    if kind == "files":
        return wheels.get(name, b"")
    return "".join(
        f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>\n'
        for file, data in wheels.items()
        if kind == "simple" and file.partition("-")[0].lower() == name.strip("/")
    ).encode()


def npm_answers(name: str, registry: str) -> dict[str, bytes]:
    """Return what an npm registry has of a one-file package, by path."""
    manifest = {"name": name, "version": "1.0.0", "main": "index.js"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for file, data in (
            ("package.json", json.dumps(manifest).encode()),
            ("index.js", b"module.exports = 'from ' + 'npm';\n"),
        ):
            info = tarfile.TarInfo(f"package/{file}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    tarball = out.getvalue()
    dist = {
        "tarball": f"{registry}/{name}.tgz",
        "shasum": hashlib.sha1(tarball, usedforsecurity=False).hexdigest(),
    }
    packument = {
        "name": name,
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": {**manifest, "dist": dist}},
    }
    return {f"/{name}": json.dumps(packument).encode(), f"/{name}.tgz": tarball}


def git_repository(directory: Path) -> Path:
    """Make a bare repository with one commit that any web server can serve."""
    work, bare = directory / "work", directory / "repo.git"

    def git(*words: str, cwd: Path = directory) -> None:
        settings = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *settings, *words], cwd=cwd, check=True, capture_output=True)

    git("init", "-q", "-b", "main", str(work))
    (work / "hello.txt").write_text("from git\n")
    git("add", "hello.txt", cwd=work)
    git("commit", "-q", "-m", "first", cwd=work)
    git("clone", "-q", "--bare", str(work), str(bare))
    git("update-server-info", cwd=bare)
    return bare
