"""Where there is no bubblewrap for the fetcher, or none for the sessions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from codegen_mcp.languages.python.fetcher_sandbox import confine
from codegen_mcp.sandbox import landlock
from codegen_mcp.sandbox.process import ProcessBackend


async def test_without_bubblewrap_the_fetcher_works_and_what_is_missing_is_said(make_rig, index):
    index.wheel("alpha", requires=("beta",))
    index.wheel("beta")
    rig = await make_rig(index_urls=(index.url,), bubblewrap=None)
    session = await rig.session()

    result = await session.install("alpha")

    assert [p.name for p in result.installed] == ["alpha", "beta"]
    _, weakness = await confine(rig.config, rig.interpreter)
    assert "there is no bubblewrap" in weakness


async def test_a_bubblewrap_that_does_not_work_is_found_out_at_the_start(make_rig, index):
    index.wheel("alpha")
    rig = await make_rig(index_urls=(index.url,), bubblewrap=Path("/bin/false"))

    result = await (await rig.session()).install("alpha")

    assert rig.config.bubblewrap is None
    assert result.exit_code == 0


@pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
async def test_packages_are_installed_in_sessions_without_namespaces(make_rig, index):
    index.wheel("alpha", scripts={"alpha-tool": "alpha:main"})
    rig = await make_rig(index_urls=(index.url,))
    config = rig.host.backend_config
    rig.host = dataclasses.replace(rig.host, backend=ProcessBackend(config))
    session = await rig.session()

    said = await session.python(
        "import os\n"
        "os.makedirs('a/b'); open('f', 'w').close()\n"
        "os.link('f', 'a/b/f'); os.rename('a/b/f', 'a/f'); print(os.listdir('a'))"
    )
    assert said in ("['b', 'f']", "['f', 'b']")

    result = await session.install("alpha")

    assert result.exit_code == 0, result.output
    (location,) = [p.location for p in result.installed]
    assert await session.python("import alpha; print(alpha.__file__)") == (
        f"{location}/alpha/__init__.py"
    )
    said = await session.python("import subprocess; subprocess.run(['alpha-tool'])")
    assert "cannot import name 'main'" in said, "the script runs, by the session's interpreter"
