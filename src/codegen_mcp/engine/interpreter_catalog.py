"""Which interpreters sessions may ask for, and the language that each belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from codegen_mcp.core.errors import InvalidRequest, SandboxUnavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.languages.base import Language


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

        Raises:
            InvalidRequest: There is none; says which there are.
        """
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
