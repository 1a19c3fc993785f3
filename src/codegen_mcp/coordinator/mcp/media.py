"""What bytes are: images that models take, told by their first bytes, never by their name."""

from __future__ import annotations

import mimetypes

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""Those that every model with eyes takes."""
OCTETS = "application/octet-stream"


def image_type(data: bytes) -> str:
    """Return the type of an image by its signature; empty for what is none."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return ""


def guessed_type(name: str, data: bytes = b"") -> str:
    """Return the content type of a file by what it is, else by its name."""
    return image_type(data) or mimetypes.guess_type(name, strict=False)[0] or OCTETS


def as_text(data: bytes, *, cut: bool) -> str | None:
    """Decode UTF-8; None for bytes that are not text.

    Args:
        data: What was read.
        cut: It may end inside a character, which then is left out.
    """
    for end in range(len(data), max(len(data) - 4, -1), -1):
        try:
            text = data[:end].decode("utf-8")
        except UnicodeDecodeError:
            if not cut:
                return None
            continue
        return None if "\0" in text else text
    return None
