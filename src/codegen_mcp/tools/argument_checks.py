"""Checks that several tools share, with messages that say what to send instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.paths import join_path, parse_path

MAX_ARGUMENT_BYTES = 131_071
"""Linux takes no longer single argument or variable (MAX_ARG_STRLEN with its NUL)."""
MAX_ARGUMENTS_BYTES = 1024 * 1024
"""All arguments and variables of one run together; the kernel's own bound is a little higher."""
MAX_CODE_BYTES = 3 * 1024 * 1024

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")


def check_env(env: Mapping[str, str]) -> dict[str, str]:
    """Accept environment variables.

    Raises:
        InvalidRequest: A name is not letters, digits and ``_``, or a value has a NUL, or one or
            all together are longer than the kernel takes.
    """
    total = 0
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise InvalidRequest(
                f"environment variable name {name[:80]!r} is not valid; use letters, digits and "
                "'_', not beginning with a digit"
            )
        total += _check_string(f"environment variable {name}", value)
    _check_total("environment", total)
    return dict(env)


def check_args(args: Sequence[str]) -> tuple[str, ...]:
    """Accept the arguments of a program.

    Raises:
        InvalidRequest: One has a NUL, or one or all together are longer than the kernel takes.
    """
    _check_total("args", sum(_check_string(f"args[{at}]", value) for at, value in enumerate(args)))
    return tuple(args)


def check_code(what: str, code: str) -> bytes:
    """Return the UTF-8 of a program's text.

    Raises:
        InvalidRequest: It is longer than 3 MiB or has a lone surrogate.
    """
    encoded = to_utf8(what, code)
    if len(encoded) > MAX_CODE_BYTES:
        raise InvalidRequest(
            f"{what} has {len(encoded)} bytes, at most {MAX_CODE_BYTES} can be sent; write it to "
            "a file and run that"
        )
    return encoded


def choose_stdin(stdin: bytes, stdin_text: str) -> bytes:
    """Return the bytes for standard input.

    Raises:
        InvalidRequest: Both forms were given.
    """
    if stdin and stdin_text:
        raise InvalidRequest("both stdin and stdin_text are set; send one of them")
    return stdin or to_utf8("stdin_text", stdin_text)


def workspace_path(path: str, *, root_allowed: bool = False) -> str:
    """Return the normalised text of a path inside the workspace; ``.`` for the root.

    Raises:
        InvalidRequest, PathEscape: As ``core.paths``; an empty path is the root where allowed.
    """
    if root_allowed and not path:
        return "."
    return join_path(parse_path(path, root_allowed=root_allowed)).decode("utf-8", "surrogateescape")


def to_utf8(what: str, text: str) -> bytes:
    """Encode text that came from a caller.

    Raises:
        InvalidRequest: It has a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{what} has a lone surrogate at character {error.start}, which UTF-8 cannot carry; "
            "send valid Unicode"
        ) from None


def _check_string(what: str, value: str) -> int:
    encoded = to_utf8(what, value)
    if b"\0" in encoded:
        raise InvalidRequest(f"{what} contains a NUL character; remove it, or use a file or stdin")
    if len(encoded) > MAX_ARGUMENT_BYTES:
        raise InvalidRequest(
            f"{what} has {len(encoded)} bytes, at most {MAX_ARGUMENT_BYTES} are possible; use a "
            "file or stdin"
        )
    return len(encoded)


def _check_total(what: str, total: int) -> None:
    if total > MAX_ARGUMENTS_BYTES:
        raise InvalidRequest(
            f"{what} has {total} bytes in all, at most {MAX_ARGUMENTS_BYTES} are possible; use a "
            "file or stdin"
        )
