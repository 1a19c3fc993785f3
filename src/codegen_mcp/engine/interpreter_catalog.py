"""Which interpreters sessions may ask for, and the language that each belongs to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from codegen_mcp.core.errors import FieldNotSupported, InvalidRequest, SandboxUnavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.base import Language

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,250}")


class InterpreterCatalog:
    """Found once at start; best first."""

    def __init__(
        self, languages: Sequence[tuple[Language, Sequence[Interpreter]]], default: str = ""
    ) -> None:
        """Take what ``Language.discover`` found.

        Args:
            languages: Each with its interpreters, best first.
            default: What a session gets that names none; empty is the first of all.

        Raises:
            SandboxUnavailable: There is no interpreter at all.
            InvalidRequest: ``default`` is none of them.
        """
        self.has_images = False
        """Whether sandboxes are containers; set once it is known."""
        self._languages = {language.name: language for language, _ in languages}
        self._interpreters = [one for _, found in languages for one in found]
        if not self._interpreters:
            raise SandboxUnavailable(
                "no interpreter was found that a session could run; install python3, or name one "
                "in PYTHON_INTERPRETERS"
            )
        self._default = self._interpreters[0]
        if default:
            self._default = self.resolve(default)

    def _in_image(self, interpreter: Interpreter, image: str) -> Interpreter:
        if not self.has_images:
            raise FieldNotSupported(
                f"config.base_image {image[:80]!r}: this worker's sandboxes have no images; choose "
                "an interpreter with language, or use a worker with --sandbox container",
                metadata={"field": "config.base_image"},
            )
        if not _IMAGE.fullmatch(image):
            raise InvalidRequest(f"base_image {image[:80]!r} is not the name of an image")
        return dataclasses.replace(interpreter, name=f"{interpreter.name}@{image}", image=image)

    @property
    def default(self) -> Interpreter:
        """What a session gets that names none."""
        return self._default

    @property
    def interpreters(self) -> Sequence[Interpreter]:
        """All of them."""
        return tuple(self._interpreters)

    def language(self, interpreter: Interpreter) -> Language:
        """Return the language that an interpreter belongs to."""
        return self._languages[interpreter.language]

    def resolve(self, name: str) -> Interpreter:
        """Return the interpreter for a language (``python``) or interpreter (``python3.12``) name.

        A name may end with ``@IMAGE``: the same interpreter in a container of that image.

        Raises:
            InvalidRequest: There is none; says which there are.
        """
        name, _, image = name.partition("@")
        if image:
            return self._in_image(self.resolve(name), image)
        if not name:
            return self._default
        if name == self._default.language:
            return self._default
        for one in self._interpreters:
            if name in (one.name, one.language):
                return one
        known = ", ".join(dict.fromkeys(one.name for one in self._interpreters))
        raise InvalidRequest(
            f"language {name[:80]!r} is not available on this worker; use one of: {known}",
            reason="UNKNOWN_LANGUAGE",
        )
