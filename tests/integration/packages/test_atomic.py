"""An install that fails, is killed or is cancelled leaves the environment as it was."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest

MANY = {f"alpha/m{number}.py": "X = 1\n" * 50 for number in range(300)}


def state(session) -> dict[str, tuple[int, int]]:
    """Every file of the environment but bytecode, with what tells a change."""
    found = {}
    for root, directories, names in os.walk(session.venv):
        directories[:] = [name for name in directories if name != "__pycache__"]
        for name in names:
            path = os.path.join(root, name)
            entry = os.lstat(path)
            found[os.path.relpath(path, session.venv)] = (entry.st_size, entry.st_mtime_ns)
    return found


@pytest.fixture
def packages(index):
    index.wheel("alpha", "1.0", files={**MANY, "alpha/__init__.py": "VERSION = '1.0'\n"})
    index.wheel("alpha", "2.0", files={**MANY, "alpha/__init__.py": "VERSION = '2.0'\n"})
    index.wheel("beta", scripts={"beta-tool": "beta:main"})
    return index


async def test_a_kill_at_any_moment_leaves_the_old_environment_or_the_new(rig, packages):
    session = await rig.session()
    await session.install("alpha==1.0", "beta==1.0")
    await (await rig.session()).install("alpha==2.0")
    began = time.monotonic()
    await (await rig.session()).install("alpha==2.0")
    whole_s = time.monotonic() - began
    old = state(session)
    chance = random.Random(5)
    killed = 0

    for _ in range(10):
        session.kill_after_s = chance.uniform(0.005, whole_s)
        result = await session.install("alpha==2.0")
        if result.exit_code == 0:
            version = "2.0"
        else:
            killed += 1
            assert state(session) == old
            version = "1.0"
        assert ".codegen-install" not in os.listdir(session.venv)
        assert await session.python("import alpha, beta; print(alpha.VERSION)") == version
        if version == "2.0":
            await session.install("alpha==1.0")
            old = state(session)

    assert killed
    assert (await session.install("alpha==2.0")).exit_code == 0


async def test_a_cancelled_install_leaves_the_environment_and_no_rest(rig, packages):
    session = await rig.session()
    await session.install("alpha==1.0")
    await (await rig.session()).install("alpha==2.0")
    old = state(session)

    for delay in (0.02, 0.05, 0.08):
        task = asyncio.create_task(session.install("alpha==2.0"))
        await asyncio.wait({task}, timeout=delay)
        if task.done():
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ".codegen-install" not in os.listdir(session.venv)
        if state(session) != old:  # it came while the old environment was being deleted
            assert await session.python("import alpha; print(alpha.VERSION)") == "2.0"
            break


async def test_a_timeout_in_the_session_says_so_and_changes_nothing(rig, packages):
    session = await rig.session()
    await session.install("beta==1.0")
    old = state(session)
    await (await rig.session()).install("alpha==2.0")
    session.kill_after_s = 0.03

    result = await session.install("alpha==2.0")

    assert result.exit_code == 124
    assert result.failed == ["alpha"]
    assert state(session) == old


async def test_a_failure_inside_the_session_changes_nothing(make_rig, packages):
    rig = await make_rig(index_urls=(packages.url,), offline=True)
    for file in packages.projects["beta"]:
        (rig.config.wheelhouse / "local" / file.name).write_bytes(file.content)
    session = await rig.session()
    await session.install("beta")
    old = state(session)

    result = await session.install("beta", "alpha")

    assert result.exit_code != 0
    assert result.failed == ["alpha"]
    assert "alpha was not found" in result.output
    assert state(session) == old
    assert ".codegen-install" not in os.listdir(session.venv)


async def test_an_environment_full_of_odd_things_survives_an_install(rig, packages):
    session = await rig.session()
    await session.python(
        "import os, sysconfig\n"
        "os.chdir(sysconfig.get_path('purelib'))\n"
        "os.mkfifo('fifo'); os.symlink('/nowhere', 'dangling'); os.symlink('.', 'loop')\n"
        "os.mkdir('empty', 0o500); open('odd\\udcff.txt', 'w').close()\n"
        "os.makedirs('/venv/share/doc'); open('/venv/share/doc/text', 'w').write('kept')"
    )

    result = await session.install("beta")

    assert result.exit_code == 0
    said = await session.python(
        "import os, stat, sysconfig\n"
        "os.chdir(sysconfig.get_path('purelib'))\n"
        "print(stat.S_ISFIFO(os.lstat('fifo').st_mode), os.readlink('dangling'), "
        "os.readlink('loop'), os.path.isdir('empty'), os.path.exists('odd\\udcff.txt'), "
        "open('/venv/share/doc/text').read())"
    )
    assert said == "True /nowhere . True True kept"
