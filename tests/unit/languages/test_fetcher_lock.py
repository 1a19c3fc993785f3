from __future__ import annotations

from pathlib import Path

import pytest

from codegen_mcp.core.errors import Unavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.python.fetcher_lock import read_lock

PYTHON = Interpreter(
    language="python",
    name="python3.11",
    version="3.11.2",
    executable=Path("/usr/bin/python3.11"),
    trees=(),
    site_packages="lib/python3.11/site-packages",
    template=Path("/nowhere"),
)
SHA = "ab" * 32


def lock(*wheels: str, name: str = "alpha", version: str = "1.0", sha256: str = SHA) -> str:
    entries = ",".join(
        f'{{ url = "https://files.example/x/{wheel}", size = 5, '
        f'hashes = {{ sha256 = "{sha256}" }} }}'
        for wheel in wheels
    )
    return f'[[packages]]\nname = "{name}"\nversion = "{version}"\nwheels = [{entries}]\n'


def test_one_wheel_of_each_package_is_chosen() -> None:
    (alpha, beta) = read_lock(
        lock("alpha-1.0-py3-none-any.whl")
        + lock("beta-2-py3-none-any.whl", name="beta", version="2"),
        PYTHON,
    )

    assert (alpha.project, alpha.version, alpha.sha256, alpha.size) == ("alpha", "1.0", SHA, 5)
    assert alpha.url == "https://files.example/x/alpha-1.0-py3-none-any.whl"
    assert beta.name == "beta-2-py3-none-any.whl"


def test_the_most_specific_wheel_wins_in_whatever_order() -> None:
    wheels = [
        "alpha-1.0-py3-none-any.whl",
        "alpha-1.0-cp311-none-any.whl",
        "alpha-1.0-py2.py3-none-any.whl",
        "alpha-1.0-cp27-none-any.whl",
    ]

    for order in (wheels, wheels[::-1]):
        (chosen,) = read_lock(lock(*order), PYTHON)
        assert chosen.name == "alpha-1.0-cp311-none-any.whl"


def test_stubs_of_ours_are_left_out() -> None:
    text = lock("alpha-1.0-py3-none-any.whl").replace("https://files.example", "file:///fetch")

    assert read_lock(text, PYTHON) == ()


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "packages = 5",
        '[[packages]]\nversion = "1"',
        '[[packages]]\nname = "../a"\nversion = "1"',
        '[[packages]]\nname = "a"\nversion = "no version"',
        lock("beta-1.0-py3-none-any.whl"),
        lock("alpha-2.0-py3-none-any.whl"),
        lock("alpha.whl"),
        lock("..%2falpha-1.0-py3-none-any.whl"),
        lock("alpha-1.0-py3-none-any.whl", sha256="zz"),
        lock("alpha-1.0-py3-none-any.whl").replace("https:", "ftp:"),
    ],
)
def test_a_lock_that_uv_would_not_write_is_refused(text: str) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        read_lock(text, PYTHON)


def test_a_resolution_without_end_is_refused() -> None:
    with pytest.raises(Unavailable, match="too many"):
        read_lock('[[packages]]\nname = "a"\nversion = "1"\n' * 2001, PYTHON)
