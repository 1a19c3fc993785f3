"""Which languages there are: one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from codegen_mcp.languages.base import Language
from codegen_mcp.languages.python.language import PythonLanguage
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.sandbox.base import HostIdentity


def make_languages(
    state: Path,
    *,
    packages: PackageConfig,
    interpreters: Sequence[Path] = (),
    identity: HostIdentity | None = None,
) -> Mapping[str, Language]:
    """Return every language by its name; see ``PythonLanguage`` for the arguments."""
    languages: tuple[Language, ...] = (
        PythonLanguage(state, packages=packages, interpreters=interpreters, identity=identity),
    )
    return {language.name: language for language in languages}
