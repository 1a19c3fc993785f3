"""Content-Disposition with any file name: RFC 6266, and RFC 8187 for what is not ASCII."""

from __future__ import annotations

from urllib.parse import quote

_ATTRIBUTE = "!#$&+-.^_`|~"
"""attr-char of RFC 8187, section 3.2.1, beside letters and digits."""


def attachment(name: str) -> str:
    """Return the header's value: to be saved under this name, never shown in place."""
    plain = "".join(one if " " <= one <= "~" and one not in '"\\%' else "_" for one in name)
    value = f'attachment; filename="{plain}"'
    if plain != name or name != name.strip():  # readers strip what is in quotes
        value += f"; filename*=UTF-8''{quote(name, safe=_ATTRIBUTE)}"
    return value
