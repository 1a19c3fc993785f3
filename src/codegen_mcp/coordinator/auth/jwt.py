"""Tokens that somebody else issues: JWTs (RFC 7519), checked by the issuer's public keys.

As RFC 8725 asks: a fixed list of algorithms, all of them asymmetric; issuer and audience always
compared; an expiry always there; the key chosen by the issuer's set alone (no ``jku``, ``jwk`` or
``x5u`` of the token is looked at).
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import jwt

from codegen_mcp.coordinator.auth.base import BadToken
from codegen_mcp.coordinator.auth.config import JwtConfig
from codegen_mcp.coordinator.auth.signing_keys import SigningKeys
from codegen_mcp.coordinator.auth.token_entry import PREFIX, quotas_of
from codegen_mcp.coordinator.principal import Principal, Quotas
from codegen_mcp.core.clock import Clock

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Never ``none``, and none with a shared secret: a public key would do as one (RFC 8725, 2.1)."""
MAX_TOKEN_BYTES = 8192
MAX_NAME = 255


class JwtChecker:
    """Implements ``base.TokenChecker``; an async context manager, for its keys are fetched."""

    def __init__(self, config: JwtConfig, *, clock: Clock, quotas: Quotas) -> None:
        self._config = config
        self._clock = clock
        self._quotas = quotas
        self._keys = SigningKeys(config.jwks, clock)

    async def __aenter__(self) -> JwtChecker:
        await self._keys.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._keys.__aexit__(kind, error, traceback)

    def knows(self, token: str) -> bool:
        """Three parts (RFC 7515, 3.1)."""
        return not token.startswith(PREFIX) and token.count(".") == 2

    async def check(self, token: str) -> Principal:
        """Verify all of it, and read the claims."""
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise BadToken(f"a JWT of more than {MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise BadToken(f"no JWT: {error}") from None
        if header.get("alg") not in ALGORITHMS:
            raise BadToken(f"algorithm {header.get('alg')!r}; taken are {', '.join(ALGORITHMS)}")
        key = await self._keys.find(header.get("kid"))
        if key is None:
            raise BadToken(f"unknown key {header.get('kid')!r}")
        return self._principal(self._claims(token, header["alg"], key))

    def _claims(self, token: str, algorithm: str, key: jwt.PyJWK) -> dict[str, Any]:
        # What PyJWT takes the key for: by the set's "alg", else by its type and curve.
        if key.algorithm_name != algorithm:
            raise BadToken(f"key {key.key_id!r} is for {key.algorithm_name}, not {algorithm}")
        try:
            # PyJWT reads the wall clock by itself, which is the one that "exp" means.
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=[algorithm],
                audience=list(self._config.audience),
                issuer=self._config.issuer,
                leeway=self._config.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise BadToken(f"JWT: {error}") from None
        expires = claims["exp"]
        if not isinstance(expires, int | float) or not math.isfinite(expires):
            raise BadToken("JWT: exp is no time")
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        name = claims.get(self._config.claim)
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise BadToken(f"JWT: claim {self._config.claim!r} is no name of 1 to {MAX_NAME}")
        quotas = self._quotas
        if self._config.quota_claim and self._config.quota_claim in claims:
            try:
                quotas = quotas_of(claims[self._config.quota_claim], quotas)
            except ValueError as error:
                raise BadToken(f"JWT: {error}") from None
        return Principal(name=f"jwt:{name}", quotas=quotas)
