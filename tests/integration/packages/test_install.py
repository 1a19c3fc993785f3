"""Packages get into a session from an index, through the proxy, fetcher and wheelhouse."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from codegen_mcp.core.errors import Forbidden, StoreUnavailable
from codegen_mcp.core.task import EndedBy


async def test_an_installed_package_can_be_imported_at_once(rig, index):
    index.wheel("alpha", "1.5")
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code == 0
    assert [(p.name, p.version, p.location) for p in result.installed] == [
        ("alpha", "1.5", f"/venv/{rig.interpreter.site_packages}")
    ]
    assert await session.python("import alpha; print(alpha.VERSION)") == "1.5"
    assert [stage for _, stage, _ in rig.progress] == [
        "resolving",
        "resolving",
        "fetching",
        "installing",
        "done",
    ]


async def test_dependencies_come_along_and_are_named(rig, index):
    index.wheel("alpha", requires=("beta>=2",))
    index.wheel("beta", "1.0")
    index.wheel("beta", "2.1")
    session = await rig.session()

    result = await session.install("alpha")

    assert [(p.name, p.version) for p in result.installed] == [("alpha", "1.0"), ("beta", "2.1")]


async def test_without_dependencies_only_what_is_named_is_installed(rig, index):
    index.wheel("alpha", requires=("beta",))
    session = await rig.session()

    result = await session.install("alpha", no_deps=True)

    assert [p.name for p in result.installed] == ["alpha"]


async def test_the_second_session_needs_no_index_and_the_third_sees_nothing(rig, index):
    index.wheel("alpha")
    first, second, third = await rig.session(), await rig.session(), await rig.session()
    await first.install("alpha")
    asked = len(index.requests)

    result = await second.install("alpha")

    assert result.exit_code == 0
    assert len(index.requests) == asked
    assert await second.python("import alpha; print(alpha.VERSION)") == "1.0"
    assert "ModuleNotFoundError" in await third.python("import alpha")


async def test_what_is_already_there_is_reported_with_its_version(rig, index):
    index.wheel("alpha", "1.0")
    session = await rig.session()
    await session.install("alpha")
    index.wheel("alpha", "2.0")

    again = await session.install("alpha>=1")

    assert [(p.name, p.version) for p in again.installed] == [("alpha", "1.0")]


async def test_upgrade_asks_the_index_again_and_replaces(rig, index):
    index.wheel("alpha", "1.0")
    session = await rig.session()
    await session.install("alpha")
    index.wheel("alpha", "2.0")

    result = await session.install("alpha", upgrade=True)

    assert [(p.name, p.version) for p in result.installed] == [("alpha", "2.0")]
    assert await session.python("import alpha; print(alpha.VERSION)") == "2.0"


async def test_the_best_wheel_for_the_interpreter_is_chosen(rig, index):
    series = rig.interpreter.name.removeprefix("python").replace(".", "")
    for tag, where in (
        ("py3-none-any", "any"),
        (f"cp{series}-none-any", "exact"),
        ("cp27-none-any", "wrong"),
    ):
        index.wheel("alpha", files={"alpha.py": f"WHERE = {where!r}\n"}, tag=tag)
    session = await rig.session()

    await session.install("alpha")

    assert await session.python("import alpha; print(alpha.WHERE)") == "exact"


async def test_a_release_that_was_yanked_is_not_chosen_unless_it_is_named(rig, index):
    index.wheel("alpha", "1.0")
    index.wheel("alpha", "2.0", yanked=True)
    first, second = await rig.session(), await rig.session()

    named = await first.install("alpha==2.0")
    unnamed = await second.install("alpha")

    assert [p.version for p in named.installed] == ["2.0"]
    assert [p.version for p in unnamed.installed] == ["1.0"]


async def test_a_pinned_pre_release_of_one_session_is_not_given_to_another(rig, index):
    index.wheel("alpha", "1.0")
    index.wheel("alpha", "2.0rc1")
    first, second = await rig.session(), await rig.session()

    pinned = await first.install("alpha==2.0rc1")
    plain = await second.install("alpha")

    assert [p.version for p in pinned.installed] == ["2.0rc1"]
    assert [p.version for p in plain.installed] == ["1.0"]


async def test_scripts_are_installed_and_run_by_the_sessions_own_python(rig, index):
    index.wheel(
        "alpha",
        files={"alpha.py": "import sys\ndef main(): print('ran', sys.prefix)\n"},
        scripts={"alpha-tool": "alpha:main"},
    )
    session = await rig.session()

    await session.install("alpha")

    out = await session.python("import subprocess; subprocess.run(['alpha-tool'])")
    assert out == "ran /venv"


async def test_a_marker_that_does_not_apply_installs_nothing_and_fails_nothing(rig, index):
    index.wheel("alpha")
    session = await rig.session()

    result = await session.install("alpha", "beta; sys_platform == 'win32'")

    assert result.exit_code == 0
    assert [p.name for p in result.installed] == ["alpha"]
    assert result.failed == []


async def test_a_pep_503_html_index_serves_as_well(rig, index):
    index.html_only = True
    index.wheel("alpha", "3.1", requires_python=">=3.8")
    session = await rig.session()

    result = await session.install("alpha")

    assert [p.version for p in result.installed] == ["3.1"]


async def test_a_missing_package_fails_in_the_resolvers_words_and_changes_nothing(rig, index):
    index.wheel("alpha")
    session = await rig.session()
    before = session.names()

    result = await session.install("alpha", "no-such-thing")

    assert result.exit_code != 0
    assert result.failed == ["no-such-thing"]
    assert "no-such-thing was not found" in result.output
    assert result.installed == ()
    assert session.names() == before


async def test_conflicting_versions_fail_with_both_named(rig, index):
    index.wheel("alpha", requires=("gamma<2",))
    index.wheel("beta", requires=("gamma>=2",))
    index.wheel("gamma", "1.0")
    index.wheel("gamma", "2.0")
    session = await rig.session()

    result = await session.install("alpha", "beta")

    assert result.exit_code != 0
    assert result.failed == ["alpha", "beta"]
    assert "unsatisfiable" in result.output


async def test_no_wheel_for_this_interpreter_says_so(rig, index):
    index.wheel("alpha", tag="cp27-cp27m-win32")
    session = await rig.session()

    result = await session.install("alpha")

    assert result.exit_code != 0
    assert result.failed == ["alpha"]
    assert "no wheels with a matching" in result.output


async def test_an_index_that_is_not_configured_is_forbidden(rig, index, serve_index):
    other = serve_index()
    session = await rig.session()

    with pytest.raises(Forbidden, match="is not one of this worker's package indexes"):
        await session.install("alpha", index_url=other.url)

    assert other.requests == []
    assert session.runs == []


async def test_each_index_gives_its_own_files(make_rig, serve_index):
    first_index, second_index = serve_index(), serve_index()
    first_index.wheel("alpha", files={"alpha.py": "FROM = 'first'\n"})
    second_index.wheel("alpha", files={"alpha.py": "FROM = 'second'\n"})
    rig = await make_rig(index_urls=(first_index.url, second_index.url))
    first, second = await rig.session(), await rig.session()

    await first.install("alpha")
    await second.install("alpha", index_url=second_index.url + "/")

    assert await first.python("import alpha; print(alpha.FROM)") == "first"
    assert await second.python("import alpha; print(alpha.FROM)") == "second"


async def test_an_index_that_is_down_is_unavailable_unless_the_wheelhouse_suffices(rig, index):
    index.wheel("alpha")
    await (await rig.session()).install("alpha")
    index.failing = True
    session = await rig.session()

    held = await session.install("alpha>=1")
    with pytest.raises(StoreUnavailable, match=r"does not answer|does not deliver"):
        await session.install("beta")

    assert [p.name for p in held.installed] == ["alpha"]


async def test_names_without_a_pin_are_asked_for_again_after_the_ttl(make_rig, index):
    index.wheel("alpha", "1.0")
    rig = await make_rig(index_urls=(index.url,), ttl_s=0.001)
    await (await rig.session()).install("alpha")
    await (await rig.session()).install("alpha==1.0")
    index.wheel("alpha", "2.0")
    asked = index.pages("alpha")

    pinned = await (await rig.session()).install("alpha==1.0")
    assert index.pages("alpha") == asked
    newer = await (await rig.session()).install("alpha")

    assert [p.version for p in pinned.installed] == ["1.0"]
    assert [p.version for p in newer.installed] == ["2.0"]


async def test_offline_only_the_wheelhouse_and_the_operators_wheels_count(
    make_rig, index, tmp_path
):
    file = index.wheel("alpha", "4.2")
    rig = await make_rig(index_urls=(index.url,), offline=True)
    (rig.state / "wheels" / "local" / file.name).write_bytes(file.content)
    session = await rig.session()

    result = await session.install("alpha")
    missing = await session.install("beta")

    assert [p.version for p in result.installed] == ["4.2"]
    assert missing.failed == ["beta"]
    assert index.requests == []


async def test_a_new_worker_finds_the_wheelhouse_of_the_last_one(make_rig, index):
    index.wheel("alpha")
    rig = await make_rig(index_urls=(index.url,))
    await (await rig.session()).install("alpha==1.0")
    asked = len(index.requests)

    again = await make_rig(state=rig.state, index_urls=(index.url,))
    again.first = 10
    result = await (await again.session()).install("alpha==1.0")

    assert result.exit_code == 0
    assert len(index.requests) == asked


async def test_installs_of_the_same_thing_at_once_share_one_fetch(rig, index):
    index.wheel("alpha")
    index.stalled = threading.Event()
    sessions = [await rig.session() for _ in range(4)]

    tasks = [asyncio.create_task(session.install("alpha")) for session in sessions]
    deadline = time.monotonic() + 10
    while not index.requests and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    index.stalled.set()
    results = await asyncio.gather(*tasks)

    assert [result.exit_code for result in results] == [0] * 4
    assert index.requests.count("/files/alpha-1.0-py3-none-any.whl") <= 3
    assert index.pages("alpha") <= 2


async def test_a_fetch_that_takes_too_long_ends_at_the_timeout(rig, index):
    index.wheel("alpha")
    index.stalled = threading.Event()
    session = await rig.session()

    result = await session.install("alpha", timeout_s=0.5)

    assert result.exit_code == 124
    assert result.failed == ["alpha"]
    assert result.outcome is not None
    assert result.outcome.ended_by is EndedBy.TIMEOUT
    assert session.runs == []


async def test_a_cancelled_fetch_leaves_nothing_and_the_next_one_works(rig, index):
    index.wheel("alpha")
    await (await rig.session()).install("alpha")
    index.wheel("beta")
    index.stalled = threading.Event()
    session = await rig.session()
    task = asyncio.create_task(session.install("beta"))
    asked = len(index.requests)
    deadline = time.monotonic() + 10
    while len(index.requests) == asked and time.monotonic() < deadline:
        await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert os.listdir(rig.config.staging) == []
    index.stalled.set()
    assert (await session.install("beta")).exit_code == 0
