"""Inflating what may be hostile: in bounded pieces, counted before they are used."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from codegen_mcp.core.errors import Corrupt, LimitExceeded
from codegen_mcp.engine.checkpoints.archive_codec import INFLATE_ERRORS, inflater

PIECE_BYTES = 256 * 1024
"""Longest piece that comes out: large ones cost page faults, small ones calls."""
_INPUT_BYTES = 64 * 1024
"""What a member leaves unread is copied, so little is offered at a time."""
_BLOCK = 512


def iter_inflated(
    pieces: Iterable[bytes], max_inflated: int, *, single: bool = False
) -> Generator[bytes, None, None]:
    """Inflate one or more gzip members (RFC 1952, 2.2), one after the other.

    Args:
        pieces: The compressed bytes, however cut.
        max_inflated: Most bytes that may come out, over all members.
        single: There is one member, of any length. Else each holds one or more whole blocks of tar.

    Yields:
        1 to PIECE_BYTES bytes.

    Raises:
        Corrupt: No gzip, damaged, cut off, or other bytes after a member.
        LimitExceeded: More than ``max_inflated``, before the piece that is too much is given.
    """
    done = offset = members = 0
    member = None
    began = 0
    block = 1 if single else _BLOCK
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _INPUT_BYTES):
            rest: bytes | memoryview = view[start : start + _INPUT_BYTES]
            offset += len(rest)
            while True:
                if member is None:
                    if not rest:
                        break
                    if single and members:
                        raise Corrupt(f"bytes follow its end, before byte {offset}")
                    member, began = inflater(), done
                try:
                    # One byte above the limit is asked for, to tell what is full from what is over.
                    out = member.decompress(
                        rest,  # type: ignore[arg-type]
                        min(PIECE_BYTES, max_inflated - done + 1),
                    )
                except INFLATE_ERRORS as error:
                    raise Corrupt(
                        f"gzip member {members + 1} is damaged before byte {offset}: {error}"
                    ) from None
                done += len(out)
                if done > max_inflated:
                    raise LimitExceeded(f"it inflates to more than {max_inflated} bytes")
                if out:
                    yield out
                if member.eof:
                    if done == began or (done - began) % block:
                        raise Corrupt(
                            f"gzip member {members + 1} holds {done - began} bytes, "
                            f"not a multiple of {block}"
                        )
                    rest, member, members = member.unused_data, None, members + 1
                    continue
                rest = member.unconsumed_tail
                if not rest and not out:
                    break
    if member is not None:
        raise Corrupt(f"gzip member {members + 1} ends too early, after {offset} bytes")
    if not members:
        raise Corrupt("it is empty: there is no gzip member")
