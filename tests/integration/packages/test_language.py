"""Python as a language: interpreters, environments, packages, as the worker wires them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from codegen_mcp.core.errors import SandboxUnavailable, WorkerError
from codegen_mcp.languages.python.language import install_uv
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.languages.registry import make_languages
from codegen_mcp.sandbox.base import TOOLS, WHEELS
from codegen_mcp.sandbox.bubblewrap import find_bubblewrap


@pytest.fixture
def state():
    directory = Path(tempfile.mkdtemp(prefix="codegen-language-"))
    os.chmod(directory, 0o711)
    yield directory
    shutil.rmtree(directory)


async def test_a_language_is_ready_after_it_was_discovered(state, host):
    packages = PackageConfig.below(
        state,
        offline=True,
        bubblewrap=Path(find_bubblewrap()),
        fetch_identity=host.fetcher,
    )
    language = make_languages(state, packages=packages)["python"]
    with pytest.raises(WorkerError, match="not discovered"):
        _ = language.installer

    interpreters = await language.discover()
    try:
        assert interpreters
        mounts = language.read_only_mounts()
        assert set(mounts) == {TOOLS, WHEELS}
        assert all(path.is_dir() for path in mounts.values())
        language.make_environment(interpreters[0], state / "venv", None)
        assert (state / "venv" / "pyvenv.cfg").exists()
        assert language.installer is not None
    finally:
        language.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only a root worker needs another user")
async def test_a_root_worker_without_a_user_for_the_fetcher_does_not_start(state):
    packages = PackageConfig.below(state, bubblewrap=Path(find_bubblewrap()))

    with pytest.raises(SandboxUnavailable, match="needs fetch_identity"):
        await make_languages(state, packages=packages)["python"].discover()


def test_uv_is_copied_once_and_runs(tmp_path):
    target = tmp_path / "tools" / "uv"

    install_uv(target)
    first = target.stat()
    install_uv(target)

    assert target.stat().st_ino == first.st_ino
    assert first.st_mode & 0o777 == 0o755
    assert subprocess.run([target, "--version"], capture_output=True, check=True).stdout
