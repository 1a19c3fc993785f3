"""Glob patterns over paths of raw bytes, in linear time whatever the pattern.

- ``*`` any characters but ``/``, ``?`` one of them, ``[abc]``, ``[a-z]``, ``[!abc]`` one of a set.
- ``**`` as a whole component: any number of components, none included; at the end at least one.
- Without ``/`` the pattern is held against the name of each entry, at any depth; with one,
  against the path relative to the directory that is listed.
- Names that begin with a dot match like others; case matters; ``[*]`` is a literal star.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.paths import MAX_PATH_BYTES

Matcher = Callable[[bytes, bytes], bool]
"""(path relative to the listed directory, its last name) to whether it matches."""

_DEEP = "**"
_Component = Callable[[str], object]


def compile_glob(pattern: str) -> Matcher | None:
    """Return a matcher; None where the empty pattern lets everything through.

    Raises:
        InvalidRequest: It is absolute, has ``..`` or NUL, or is longer than a path.
    """
    if not pattern:
        return None
    if len(pattern) > MAX_PATH_BYTES or "\0" in pattern:
        raise InvalidRequest(
            f"pattern {pattern[:80]!r} is longer than {MAX_PATH_BYTES} characters or has a NUL"
        )
    parts = [part for part in pattern.split("/") if part != "."]
    if pattern.startswith("/") or ".." in parts:
        raise InvalidRequest(
            f"pattern {pattern[:80]!r} is absolute or has '..'; give it relative to the directory"
        )
    if "/" not in pattern and pattern != _DEEP:
        name_matches = _component(pattern)
        return lambda path, name: name_matches(_text(name)) is not None
    return _path_matcher([part for part in parts if part])


def _path_matcher(parts: list[str]) -> Matcher:
    steps: list[_Component | None] = []
    for part in parts:
        if part != _DEEP:
            steps.append(_component(part))
        elif not steps or steps[-1] is not None:
            steps.append(None)
    if not steps or steps[-1] is None:
        steps.append(lambda name: True)  # a final ** means something below

    def matches(path: bytes, name: bytes) -> bool:
        del name
        return _walk(_text(path).split("/"), steps)

    return matches


def _walk(names: list[str], steps: list[_Component | None]) -> bool:
    """Match with one remembered ``**``: a later one makes an earlier choice final."""
    at = step = 0
    resume_step, resume_at = -1, 0
    while at < len(names):
        if step < len(steps):
            test = steps[step]
            if test is None:
                resume_step, resume_at = step + 1, at
                step += 1
                continue
            if test(names[at]):
                at += 1
                step += 1
                continue
        if resume_step < 0:
            return False
        resume_at += 1
        at, step = resume_at, resume_step
    return all(test is None for test in steps[step:])


def _component(pattern: str) -> _Component:
    """Translate one component; atomic groups keep ``*a*a*a*b`` from backtracking."""
    out: list[str] = []
    literal: list[str] = []
    stars = 0
    i = 0
    while i < len(pattern):
        char = pattern[i]
        i += 1
        if char == "*":
            if stars and literal:
                out.append(f"(?>.*?{''.join(literal)})")
            elif literal:
                out.append("".join(literal))
            literal.clear()
            stars += 1
        elif char == "?":
            literal.append(".")
        elif char == "[" and (end := _set_end(pattern, i)) > 0:
            literal.append(_set(pattern[i:end]))
            i = end + 1
        else:
            literal.append(re.escape(char))
    out.append((".*" if stars else "") + "".join(literal))
    return re.compile("".join(out), re.DOTALL).fullmatch


def _set_end(pattern: str, start: int) -> int:
    """Index of the ``]`` that closes the set, or -1: then ``[`` is an ordinary character."""
    first = start + 1 if pattern[start : start + 1] == "!" else start
    return pattern.find("]", first + 1)


def _set(body: str) -> str:
    negated = body.startswith("!")
    items = body[1:] if negated else body
    out: list[str] = []
    i = 0
    while i < len(items):
        if items[i + 1 : i + 2] == "-" and i + 2 < len(items):
            low, high = items[i], items[i + 2]
            if low > high:
                raise InvalidRequest(f"pattern has the empty range {low}-{high}; swap its ends")
            out.append(f"{re.escape(low)}-{re.escape(high)}")
            i += 3
        else:
            out.append(re.escape(items[i]))
            i += 1
    return f"[{'^' if negated else ''}{''.join(out)}]"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
