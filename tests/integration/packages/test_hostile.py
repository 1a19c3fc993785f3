"""What callers, indexes, wheels, sources and sessions may try, and what comes of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from codegen_mcp.core.errors import InvalidRequest, LimitExceeded, StoreUnavailable

REFUSED = [
    "; rm -rf /",
    "alpha; rm -rf /",
    "alpha && id",
    "$(id)",
    "`id`",
    "-r requirements.txt",
    "--index-url=http://evil.example/simple",
    "--target=/workspace",
    "git+file:///workspace/repo",
    "git+https://evil.example/repo",
    "alpha @ file:///etc/passwd",
    "alpha @ https://evil.example/alpha-1.0-py3-none-any.whl",
    "https://evil.example/alpha-1.0.tar.gz",
    "./alpha",
    "/etc/passwd",
    "../alpha",
    "~/alpha",
    "alpha-1.0-py3-none-any.whl",
    "alpha\n--index-url=http://evil.example",
    "alpha\x00",
    "",
    " ",
    "a" * 1000,
    "alpha --hash=sha256:00",
    "${HOME}",
]


async def test_what_is_no_plain_specifier_is_refused_before_anything_runs(rig, index):
    session = await rig.session()

    for value in REFUSED:
        with pytest.raises(InvalidRequest):
            await session.install("alpha", value)

    assert index.requests == []
    assert session.runs == []


async def test_a_wheel_whose_paths_climb_out_writes_nothing_there(rig, index):
    index.wheel("alpha", files={"alpha.py": "", "../../../../bin/evil": "#!/bin/sh\n"})
    session = await rig.session()

    await session.install("alpha")

    assert list(rig.state.rglob("evil")) == []


async def test_a_file_whose_hash_is_not_the_indexs_is_not_kept(rig, index):
    index.wheel("alpha", sha256="00" * 32)
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert result.failed == ["alpha"]
    assert "nothing of it was kept" in result.output
    assert os.listdir(rig.config.wheelhouse / "files") == []
    assert session.runs == []


async def test_a_file_that_is_too_large_is_refused(make_rig, index):
    rig = await make_rig(index_urls=(index.url,), max_file_bytes=100_000)
    index.wheel("alpha", files={"alpha.bin": os.urandom(200_000)})
    session = await rig.session()

    with pytest.raises((LimitExceeded, StoreUnavailable)):
        await session.install("alpha")

    assert os.listdir(rig.config.wheelhouse / "files") == []


async def test_a_fetch_of_too_many_bytes_is_cut_off(make_rig, index):
    rig = await make_rig(index_urls=(index.url,), max_fetch_bytes=100_000)
    index.wheel("alpha", files={"alpha.bin": os.urandom(200_000)})
    session = await rig.session()

    with pytest.raises(LimitExceeded):
        await session.install("alpha")


async def test_a_wheel_that_is_no_archive_fails_and_changes_nothing(rig, index):
    file = index.wheel("alpha")
    file.content = b"this is no archive"
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert result.failed == ["alpha"]
    assert session.runs == []


async def test_files_on_another_private_server_are_not_fetched(rig, index, serve_index):
    other = serve_index()
    file = other.wheel("alpha")
    index.wheel("alpha").url = other.url.replace("/simple", f"/files/{file.name}")
    session = await rig.session()

    with pytest.raises(StoreUnavailable, match="private or reserved address"):
        await session.install("alpha")

    assert other.requests == []


async def test_the_operator_can_name_a_server_of_files(make_rig, index, serve_index):
    other = serve_index()
    file = other.wheel("alpha")
    index.wheel("alpha").url = other.url.replace("/simple", f"/files/{file.name}")
    host = re.sub(r"http://|/simple", "", other.url)
    rig = await make_rig(index_urls=(index.url,), file_hosts=(host,))

    result = await (await rig.session()).install("alpha")

    assert result.exit_code == 0
    assert f"/files/{file.name}" in other.requests


async def test_a_redirect_to_another_server_is_not_followed(rig, index, serve_index):
    other = serve_index()
    other.wheel("alpha")
    index.redirects["/simple/alpha/"] = other.url + "/alpha/"
    session = await rig.session()

    with pytest.raises(StoreUnavailable):
        await session.install("alpha")

    assert other.requests == []


async def test_a_session_cannot_change_the_wheelhouse(rig, index):
    index.wheel("alpha", "1.0")
    session = await rig.session()
    await session.install("alpha")
    (stored,) = (rig.config.wheelhouse / "files").iterdir()
    content = stored.read_bytes()

    said = await session.python(
        "import os, sys\n"
        "root = '/run/codegen/wheels'\n"
        "tried = 0\n"
        "for parent in (root, root + '/files', root + '/views', root + '/local'):\n"
        "    acts = [lambda: open(parent + '/evil.whl', 'w'), lambda: os.chmod(parent, 0o777)]\n"
        "    acts += [lambda: os.rename(parent, parent + 'x'), lambda: os.rmdir(parent)]\n"
        "    for act in acts:\n"
        "        try: act()\n"
        "        except OSError: tried += 1\n"
        "        else: print('done', parent)\n"
        "print(tried)"
    )

    assert said == "16"
    assert stored.read_bytes() == content


async def test_no_file_of_a_session_is_shared_with_the_wheelhouse_or_a_neighbour(rig, index):
    index.wheel("alpha", scripts={"alpha-tool": "alpha:main"})
    first, second = await rig.session(), await rig.session()
    await first.install("alpha")
    await second.install("alpha")

    def inodes(root: Path) -> dict[int, int]:
        paths = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        return {path.stat().st_ino: path.stat().st_nlink for path in paths}

    mine, theirs, shared = map(inodes, (first.venv, second.venv, rig.config.wheelhouse))
    assert not (mine.keys() & theirs.keys())
    assert not ((mine.keys() | theirs.keys()) & shared.keys())
    assert set(mine.values()) == {1}
    await first.python("import alpha; open(alpha.__file__, 'w').write('VERSION = \"evil\"')")
    assert await second.python("import alpha; print(alpha.VERSION)") == "1.0"


@pytest.mark.skipif(os.geteuid() != 0, reason="without root all sessions are the worker's user")
async def test_a_session_cannot_see_what_others_installed(rig, index):
    index.wheel("alpha")
    index.wheel("beta")
    first, second = await rig.session(), await rig.session()
    await first.install("alpha")
    await second.install("beta")

    said = await second.python(
        "import os\n"
        "for name in ('files', 'views', 'sources', 'index.json'):\n"
        "    path = '/run/codegen/wheels/' + name\n"
        "    try: print(os.listdir(path) if os.path.isdir(path) else open(path).read())\n"
        "    except PermissionError: print('refused')"
    )

    assert said.split() == ["refused"] * 4


async def test_an_environment_that_lies_is_not_believed_nor_followed(rig, index):
    index.wheel("alpha")
    session = await rig.session()
    await session.install("alpha")
    path = f"/venv/{rig.interpreter.site_packages}/alpha-1.0.dist-info/METADATA"
    honest = f"open({path!r}, 'w').write('Name: alpha\\nVersion: 1.0\\n')"
    for trick in (
        f"os.symlink('/etc/passwd', {path!r})",
        f"open({path!r}, 'w').write('Name: root\\nVersion: 1\\n')",
        f"open({path!r}, 'w').write('X: ' + 'y' * 5000000 + '\\nName: alpha')",
        f"os.mkfifo({path!r})",
    ):
        await session.python(f"import os; os.unlink({path!r}); {trick}")

        result = await session.install("alpha", timeout_s=2)

        assert [(p.name, p.version) for p in result.installed] in ([], [("alpha", "1.0")])
        assert result.exit_code != 0 or result.installed
        await session.python(f"import os; os.unlink({path!r}); {honest}")


async def test_modules_of_the_workspace_take_no_part_in_an_install(rig, index):
    index.wheel("alpha")
    session = await rig.session()
    for name in ("json", "os", "sitecustomize", "importlib"):
        await session.python(f"open('/workspace/{name}.py', 'w').write('raise SystemExit(7)')")
    await session.python("open('/workspace/uv.toml', 'w').write('no-index = 5')")

    result = await session.install("alpha")

    assert result.exit_code == 0
