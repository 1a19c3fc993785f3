"""Tracebacks as a model needs them: the user's own frames, the libraries' in one line."""

from __future__ import annotations

import re

_FRAME = re.compile(r'^(?P<indent> {2,}(?:[|] )*)File "(?P<path>[^"]+)", line (?P<line>\d+)')
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3|<frozen |^/usr/lib|\.zip/")
_BEGIN = re.compile(r"^(?:[ |+-]*)Traceback \(most recent call last\):\s*$")


def trimmed(text: str) -> tuple[str, int]:
    """Leave out the frames of libraries; (text, how many frames went).

    A traceback without a frame of the user's is left whole: it is all there is to go by.
    """
    lines = text.split("\n")
    kept: list[str] = []
    gone = 0
    at = 0
    while at < len(lines):
        kept.append(lines[at])
        at += 1
        if not _BEGIN.match(kept[-1]):
            continue
        frames: list[tuple[bool, str, list[str]]] = []
        while at < len(lines) and (match := _FRAME.match(lines[at])):
            block = [lines[at]]
            at += 1
            while at < len(lines) and lines[at].startswith(match["indent"] + "  "):
                block.append(lines[at])
                at += 1
            frames.append((bool(_LIBRARY.search(match["path"])), match["path"], block))
        if all(library for library, _, _ in frames):
            kept += [line for _, _, block in frames for line in block]
            continue
        gone += _keep_users(frames, kept)
    return "\n".join(kept), gone


def _keep_users(frames: list[tuple[bool, str, list[str]]], kept: list[str]) -> int:
    """Append the frames with each row of library frames as one line; how many frames went."""
    gone = at = 0
    while at < len(frames):
        library, path, block = frames[at]
        if not library:
            kept += block
            at += 1
            continue
        begin = at
        while at < len(frames) and frames[at][0]:
            path = frames[at][1]
            at += 1
        count = at - begin
        gone += count
        kept.append(f"  ... {count} {'frame' if count == 1 else 'frames'} in {_short(path)}")
    return gone


def _short(path: str) -> str:
    for mark in ("site-packages/", "dist-packages/"):
        if mark in path:
            return path.rpartition(mark)[2]
    return path.rpartition("/lib/")[2] or path
