"""With the index that pip itself would use; skipped where it cannot be reached."""

from __future__ import annotations

import time

import pytest

from codegen_mcp.core.errors import StoreUnavailable
from codegen_mcp.languages.python.index_links import linked_origins, pip_settings

pytestmark = pytest.mark.network


@pytest.fixture
async def online_rig(make_rig):
    """An installer without any index setting."""
    try:
        settings = await pip_settings()
        await linked_origins(settings.index, ["six"], settings.authorities)
    except StoreUnavailable as error:
        pytest.skip(error.message)
    return await make_rig()


async def test_a_package_of_the_default_index_is_installed_and_cached(online_rig):
    first, second = await online_rig.session(), await online_rig.session()
    began = time.monotonic()
    fresh = await first.install("six==1.16.0")
    fetched_s = time.monotonic() - began

    began = time.monotonic()
    cached = await second.install("six==1.16.0")
    cached_s = time.monotonic() - began

    assert [(p.name, p.version) for p in fresh.installed] == [("six", "1.16.0")]
    assert [(p.name, p.version) for p in cached.installed] == [("six", "1.16.0")]
    assert await second.python("import six; print(six.__version__)") == "1.16.0"
    assert cached_s < fetched_s


async def test_a_package_with_compiled_dependencies_fits_the_interpreter(online_rig):
    session = await online_rig.session()

    result = await session.install("markupsafe", "jinja2")

    assert result.exit_code == 0, result.output
    assert await session.python("import jinja2, markupsafe._speedups; print('ok')") == "ok"


async def test_a_name_that_does_not_exist_is_reported_in_the_resolvers_words(online_rig):
    session = await online_rig.session()

    result = await session.install("six", "codegen-mcp-no-such-package-by-this-name")

    assert result.failed == ["codegen-mcp-no-such-package-by-this-name"]
    assert "was not found" in result.output
