"""What an index says about itself: its address by pip's settings, and the servers of its files.

Asked by the worker, not by the fetcher, so that whoever takes over the fetcher's sandbox cannot
widen its own way out. Of a page only the host names in its links are read.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from codegen_mcp.core.errors import InvalidRequest, StoreUnavailable
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.languages.python.index_rules import Origin
from codegen_mcp.languages.python.packages import Index

_LINK = re.compile(rb"""(?:href\s*=\s*["']?|"url"\s*:\s*")(https?)://([^/"'\s?#@<>]{1,255})""")
_OVERLAP = 512
_PAGE_BYTES = 64 * MIB
_TIMEOUT_S = 15.0
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"

_PIP_SETTINGS = """
import json
from pip._internal.commands import create_command
values = create_command("download").parser.get_default_values()
print(json.dumps({"index_url": values.index_url, "cert": values.cert}))
"""


@dataclass(frozen=True, slots=True)
class PipSettings:
    """What the worker's own pip would use."""

    index: Index
    authorities: Path | None


async def pip_settings() -> PipSettings:
    """Ask the worker's pip for its effective index: its settings and environment, else its own.

    Raises:
        StoreUnavailable: There is no pip, or it has no usable index.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        _PIP_SETTINGS,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    try:
        values = json.loads(out)
        cert = values["cert"]
        return PipSettings(Index.parse(values["index_url"]), Path(cert) if cert else None)
    except (ValueError, KeyError, TypeError, InvalidRequest) as error:
        words = " ".join(err.decode(errors="replace").split())[-300:]
        raise StoreUnavailable(
            "no package index is configured and pip's default cannot be read; set "
            f"PACKAGE_INDEX_URLS ({words or error})"
        ) from None


async def linked_origins(
    index: Index, projects: Iterable[str], authorities: Path | None
) -> set[Origin]:
    """Return the servers that these projects' pages link to; unknown projects have none.

    Raises:
        StoreUnavailable: The index does not answer.
    """
    found: set[Origin] = set()
    for project in projects:
        found |= await asyncio.to_thread(_ask, index, project, authorities)
    return found


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only within the index."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Refuse to go elsewhere: credentials and trust are for this one server."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            raise urllib.error.HTTPError(newurl, code, "redirect to another server", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _ask(index: Index, project: str, authorities: Path | None) -> set[Origin]:
    handlers: list[Any] = [urllib.request.ProxyHandler({}), _SameOrigin()]
    if index.public_url.startswith("https:"):
        context = ssl.create_default_context(cafile=str(authorities) if authorities else None)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity", **index.headers}
    request = urllib.request.Request(index.page(project), headers=headers)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return _origins(answer)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise _unavailable(index, f"status {error.code}") from None
        return set()
    except (OSError, HTTPException, ValueError) as error:
        raise _unavailable(index, str(error)) from None


def _origins(answer: IO[bytes]) -> set[Origin]:
    found: set[Origin] = set()
    window, total = b"", 0
    while (data := answer.read(64 * KIB)) and total < _PAGE_BYTES:
        total += len(data)
        window = window[-_OVERLAP:] + data
        for scheme, netloc in _LINK.findall(window):
            parts = urlsplit(f"{scheme.decode()}://{netloc.decode('latin-1')}")
            try:
                port = parts.port or (443 if scheme == b"https" else 80)
            except ValueError:
                continue
            if parts.hostname:
                found.add((parts.hostname.lower().rstrip("."), port))
    return found


def _unavailable(index: Index, why: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the package index {index.public_url} does not answer ({index.hide_secrets(why)}); try "
        "again later, or ask for what this worker already has",
        metadata={"index": index.public_url},
    )
