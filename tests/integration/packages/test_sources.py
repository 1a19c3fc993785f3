"""Source distributions: built in the session, with no way out, and never shared."""

from __future__ import annotations

import os

from codegen_mcp.sandbox import landlock

IN_TREE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

BACKEND = """
import os, zipfile

NAME, VERSION, REQUIRES = {name!r}, {version!r}, {requires!r}

def build_wheel(directory, config_settings=None, metadata_directory=None):
    {extra}
    stem = NAME + "-" + VERSION
    info = stem + ".dist-info"
    files = {{NAME + ".py": "VERSION = %r" % VERSION, info + "/WHEEL":
        "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}}
    lines = ["Metadata-Version: 2.1", "Name: " + NAME, "Version: " + VERSION]
    lines += ["Requires-Dist: " + one for one in REQUIRES]
    files[info + "/METADATA"] = "\\n".join(lines) + "\\n"
    files[info + "/RECORD"] = "".join(path + ",,\\n" for path in [*files, info + "/RECORD"])
    with zipfile.ZipFile(os.path.join(directory, stem + "-py3-none-any.whl"), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return stem + "-py3-none-any.whl"

def build_sdist(directory, config_settings=None):
    raise NotImplementedError
"""


def source(name, version="1.0", *, requires=(), extra="pass", pyproject=IN_TREE):
    backend = BACKEND.format(name=name, version=version, requires=list(requires), extra=extra)
    return {
        "PKG-INFO": f"Metadata-Version: 1.0\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": pyproject,
        "backend.py": backend,
    }


async def test_a_project_without_wheels_is_built_in_the_session_and_not_shared(rig, index):
    index.sdist("alpha", "1.4", source("alpha", "1.4"))
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code == 0, result.output
    assert [(p.name, p.version) for p in result.installed] == [("alpha", "1.4")]
    assert await session.python("import alpha; print(alpha.VERSION)") == "1.4"
    assert ".codegen-install" not in os.listdir(session.venv)
    assert "building" in [stage for _, stage, _ in rig.progress]
    wheels = rig.config.wheelhouse
    assert os.listdir(wheels / "files") == []
    assert len(os.listdir(wheels / "sources")) == 1
    assert list(wheels.glob("views/*/*.whl")) == []


async def test_dependencies_that_only_the_build_knows_are_installed(rig, index):
    index.sdist("alpha", "1.0", source("alpha", requires=["beta>=2", "gamma"]))
    index.wheel("beta", "2.5")
    index.sdist("gamma", "3.0", source("gamma", "3.0"))
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code == 0, result.output
    assert {p.name: p.version for p in result.installed} == {
        "alpha": "1.0",
        "beta": "2.5",
        "gamma": "3.0",
    }


async def test_a_source_that_a_wheel_depends_on_is_built_too(rig, index):
    index.wheel("alpha", requires=("gamma",))
    index.sdist("gamma", "3.0", source("gamma", "3.0"))
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code == 0, result.output
    assert [p.name for p in result.installed] == ["alpha", "gamma"]


async def test_a_backend_that_the_index_has_as_a_wheel_is_used(rig, index):
    index.wheel(
        "mybackend",
        files={
            "mybackend.py": BACKEND.format(name="alpha", version="1", requires=[], extra="pass")
        },
    )
    pyproject = '[build-system]\nrequires = ["mybackend"]\nbuild-backend = "mybackend"\n'
    index.sdist("alpha", "1", source("alpha", "1", pyproject=pyproject))
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code == 0, result.output
    assert "ModuleNotFoundError" in await session.python("import mybackend")


async def test_a_backend_that_cannot_be_had_is_named(rig, index):
    pyproject = '[build-system]\nrequires = ["no-such-backend"]\nbuild-backend = "x"\n'
    index.sdist("alpha", "1.0", source("alpha", pyproject=pyproject))
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert result.failed == ["alpha"]
    assert "no-such-backend was not found" in result.output
    assert session.runs == []


async def test_a_build_that_fails_says_why_and_changes_nothing(rig, index):
    index.sdist("alpha", "1.0", source("alpha", extra="raise SystemExit('no compiler here')"))
    session = await rig.session()
    before = session.names()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert result.failed == ["alpha"]
    assert "no compiler here" in result.output
    assert session.names() == before


async def test_a_hostile_build_reaches_neither_network_nor_environment_nor_neighbour(
    rig, index, serve_index
):
    spy = serve_index()
    evil = (
        "import glob, shutil, urllib.request\n"
        "    for path in glob.glob('/venv/lib/*/site-packages/*'):\n"
        "        try: shutil.rmtree(path)\n"
        "        except OSError as error: print('kept', error)\n"
        "    for path in ('/venv/bin/evil', '/workspace/evil', '/venv/.codegen-install/commit'):\n"
        "        try: open(path, 'w').write('x')\n"
        "        except OSError as error: print('kept', error)\n"
        f"    try: urllib.request.urlopen({spy.url!r}, timeout=2)\n"
        "    except OSError as error: print('no way out', error)\n"
        "    raise SystemExit('done')"
    )
    index.wheel("beta")
    index.sdist("alpha", "1.0", source("alpha", extra=evil))
    session, neighbour = await rig.session(), await rig.session()
    await session.install("beta")
    await neighbour.install("beta")
    before = session.names()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert spy.requests == []
    assert await neighbour.python("import beta; print(beta.VERSION)") == "1.0"
    if landlock.abi():
        assert session.names() == before
        assert await session.python("import beta; print(beta.VERSION)") == "1.0"
        assert not (session.root / "workspace" / "evil").exists()


async def test_a_build_cannot_pull_in_requirements_by_url(rig, index):
    index.sdist("alpha", "1.0", source("alpha", requires=["beta @ file:///etc/passwd"]))
    session = await rig.session()
    before = session.names()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert "by URL" in result.output
    assert session.names() == before


async def test_a_version_that_has_a_wheel_is_preferred(rig, index):
    index.wheel("alpha", "1.0")
    index.sdist("alpha", "2.0", source("alpha", "2.0"))
    session = await rig.session()

    result = await session.install("alpha")

    assert [p.version for p in result.installed] == ["1.0"]
