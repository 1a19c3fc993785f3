"""Whose links of artifacts are: where links and principals are in one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from codegen_mcp.coordinator.auth.base import NO_TOKEN, Authenticator, BadToken, Peer
from codegen_mcp.coordinator.directory.base import Directory
from codegen_mcp.core.errors import InvalidRequest, Unauthenticated
from codegen_mcp.engine.artifacts.facts import no_artifact


class Owned(Protocol):
    """Knows of what session an artifact is."""

    async def session_of(self, artifact_id: str) -> str:
        """Return it, also of one that is announced and not there yet.

        Raises:
            NotFound: There is no such artifact.
        """


class LinkGuard:
    """Asks for the principal behind a link. Implements ``http.artifacts.Guard``."""

    def __init__(
        self, authenticator: Authenticator, artifacts: Owned, directory: Directory, *, always: bool
    ) -> None:
        """Wire it.

        Args:
            authenticator: Who says who calls.
            artifacts: What links are for.
            directory: Whose sessions are.
            always: A link alone is not enough. Else a token that is sent along is checked, and a
                link without one is taken as it is.
        """
        self._authenticator = authenticator
        self._artifacts = artifacts
        self._directory = directory
        self._always = always

    async def __call__(self, headers: Mapping[str, str], artifact_id: str, peer: str) -> None:
        """Return where this request may use its link.

        Raises:
            Unauthenticated: No token, or a bad one. NotFound: It is another's, or never was.
        """
        shown = headers.get("authorization")
        if shown is None:
            if self._always:
                raise Unauthenticated(NO_TOKEN)
            return
        scheme, _, token = shown.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise BadToken("the authorization header has no bearer token")
        principal = await self._authenticator.authenticate(token.strip(), Peer(address=peer))
        row = await self._directory.get(await self._artifacts.session_of(artifact_id))
        if row is None or row.principal != principal.name:
            raise no_artifact(artifact_id)


def refuse_auth_links(wanted: bool) -> None:
    """Refuse a protection where it could not be kept, rather than ignore it.

    Raises:
        InvalidRequest: It is wanted.
    """
    if wanted:
        raise InvalidRequest(
            "AUTH_LINKS needs links and principals in one process ('codegen-mcp serve'); leave it "
            "out here, and links work for whoever has one until their time is over"
        )
