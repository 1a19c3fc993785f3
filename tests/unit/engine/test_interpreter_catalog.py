"""Which interpreter, and which image, a session gets for the name it gave."""

from pathlib import Path
from typing import cast

import pytest

from codegen_mcp.core.errors import FieldNotSupported, InvalidRequest
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.languages.base import Language


class Named:
    """All that the catalog asks of a language."""

    name = "python"


def catalog(*, images: bool) -> InterpreterCatalog:
    interpreter = Interpreter(
        language="python",
        name="python3.11",
        version="3.11.2",
        executable=Path("/usr/bin/python3.11"),
        trees=(),
        site_packages="lib/python3.11/site-packages",
        template=Path("/template"),
    )
    made = InterpreterCatalog([(cast("Language", Named()), [interpreter])])
    made.has_images = images
    return made


def test_an_image_is_part_of_the_interpreters_name_so_that_it_outlives_the_worker() -> None:
    first = catalog(images=True).resolve("@localhost/team:1")
    assert (first.name, first.image) == ("python3.11@localhost/team:1", "localhost/team:1")
    assert catalog(images=True).resolve(first.name) == first
    assert catalog(images=True).resolve("python").image == ""


def test_without_containers_an_image_is_refused_by_name() -> None:
    with pytest.raises(FieldNotSupported, match="--sandbox container") as caught:
        catalog(images=False).resolve("python@debian")
    assert caught.value.metadata == {"field": "config.base_image"}


@pytest.mark.parametrize("image", ["-v", "a b", "a;b", "../x", "x" * 300, "ü"])
def test_what_is_no_name_of_an_image_is_refused(image: str) -> None:
    with pytest.raises(InvalidRequest, match="not the name of an image"):
        catalog(images=True).resolve(f"python@{image}")
