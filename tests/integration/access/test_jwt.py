from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.base import BAD_TOKEN, Authenticator, Peer
from codegen_mcp.coordinator.auth.config import AuthConfig, JwtConfig
from codegen_mcp.coordinator.auth.signing_keys import COOLDOWN_S, STALE_S
from codegen_mcp.coordinator.principal import Quotas
from codegen_mcp.core.errors import InvalidRequest, Unauthenticated, Unavailable
from codegen_mcp.testing.access_rig import AUDIENCE, ISSUER, Issuer
from codegen_mcp.testing.manual_clock import ManualClock


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    made.add("one")
    with made.serving():
        yield made


@asynccontextmanager
async def checking(
    source: str, clock: ManualClock | None = None, **changes: Any
) -> AsyncIterator[Authenticator]:
    config = JwtConfig(**{"jwks": source, "issuer": ISSUER, "audience": (AUDIENCE,), **changes})
    async with open_authenticator(AuthConfig(jwt=config), clock or ManualClock()) as made:
        yield made


async def refusal(authenticator: Authenticator, token: str) -> str:
    """The reason in the log; the caller gets the one text."""
    with capture_logs() as logs, pytest.raises(Unauthenticated) as error:
        await authenticator.authenticate(token, Peer())
    assert error.value.message == BAD_TOKEN
    (entry,) = (entry for entry in logs if entry["event"] == "auth.refused")
    assert token not in str(logs)
    return str(entry["why"])


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_token_of_the_issuer_names_the_principal(issuer: Issuer, algorithm: str) -> None:
    issuer.add(algorithm, algorithm)
    async with checking(issuer.address) as authenticator:
        token = issuer.issue("alice", key_id=algorithm)
        assert (await authenticator.authenticate(token, Peer())).name == "jwt:alice"


async def test_keys_may_come_from_a_file(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(issuer.jwks()))
    async with checking(str(path), claim="email", quota_claim="room") as authenticator:
        token = issuer.issue("x", email="alice@test", room={"sessions": 3})
        principal = await authenticator.authenticate(token, Peer())
        assert (principal.name, principal.quotas) == ("jwt:alice@test", Quotas(sessions=3))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": timedelta(minutes=-1)},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"nbf": timedelta(minutes=10)},
        {"iat": timedelta(minutes=10)},
        {"iss": "https://other.test"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "another-service"},
        {"aud": None},
        {"aud": []},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": "a\nb"},
        {"sub": "x" * 256},
        {"room": {"sessions": -1}},
        {"room": "all"},
    ],
    ids=lambda claims: ",".join(claims),
)
async def test_a_claim_that_is_wrong_is_refused(issuer: Issuer, claims: dict[str, Any]) -> None:
    async with checking(issuer.address, quota_claim="room") as authenticator:
        await authenticator.authenticate(issuer.issue("alice"), Peer())
        now = time.time()  # of the call: naming the cases may be long ago
        wrong = {
            name: now + value.total_seconds() if isinstance(value, timedelta) else value
            for name, value in claims.items()
        }
        await refusal(authenticator, issuer.issue("alice", **wrong))


async def test_tampered_and_forged_tokens_are_refused(issuer: Issuer) -> None:
    good = issuer.issue("alice")
    header, body, signature = good.split(".")
    stranger = Issuer()
    stranger.add("one")

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = jwt.decode(good, options={"verify_signature": False})
    bobs = part({**claims, "sub": "bob"})
    public = issuer.keys["one"].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    confused = f"{part({'alg': 'HS256', 'kid': 'one'})}.{bobs}"
    mac = hmac.new(pem, confused.encode(), hashlib.sha256).digest()
    forged = [
        f"{header}.{bobs}.{signature}",
        f"{header}.{body}.{signature[:-4]}AAAA",
        f"{header}.{body}.",
        f"{part({'alg': 'none', 'kid': 'one'})}.{bobs}.",
        f"{part({'alg': 'ES384', 'kid': 'one'})}.{bobs}.{signature}",
        f"{part({'alg': 'RS256', 'kid': 'one'})}.{bobs}.{signature}",
        f"{part({'alg': 'ES256', 'kid': 'one', 'crit': ['x'], 'x': 1})}.{body}.{signature}",
        f"{part({'alg': 'ES256', 'kid': 5})}.{bobs}.{signature}",
        f"{part({'alg': 'ES256', 'kid': ['one']})}.{bobs}.{signature}",
        f"{part({'alg': ['ES256'], 'kid': 'one'})}.{bobs}.{signature}",
        f"{part([])}.{bobs}.{signature}",
        f"{part({'alg': 'ES256', 'kid': 'two', 'jku': 'http://127.0.0.1:1/'})}.{body}.{signature}",
        f"{confused}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        stranger.issue("alice"),
        good + "." + signature,
        "..",
        "é.é.é",
        "x" * 9000 + ".b.c",
    ]
    async with checking(issuer.address) as authenticator:
        await authenticator.authenticate(good, Peer())
        for token in forged:
            await refusal(authenticator, token)


async def test_a_shared_secret_in_the_set_signs_nothing(issuer: Issuer, tmp_path: Path) -> None:
    secret = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    keys = {"keys": [*issuer.jwks()["keys"], {"kty": "oct", "kid": "shared", "k": secret}]}
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(keys))
    claims = {"sub": "bob", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60}
    token = jwt.encode(claims, b"k" * 32, algorithm="HS256", headers={"kid": "shared"})
    async with checking(str(path)) as authenticator:
        assert "HS256" in await refusal(authenticator, token)


async def test_a_new_key_is_fetched_when_a_token_names_it(issuer: Issuer) -> None:
    clock = ManualClock()
    async with checking(issuer.address, clock) as authenticator:
        issuer.add("two")
        clock.advance(COOLDOWN_S)
        token = issuer.issue("alice", key_id="two")
        assert (await authenticator.authenticate(token, Peer())).name == "jwt:alice"


async def test_made_up_key_ids_do_not_load_the_issuer(issuer: Issuer) -> None:
    clock = ManualClock()
    stranger = Issuer()
    for number in range(20):
        stranger.add(f"made-up-{number}")
    async with checking(issuer.address, clock) as authenticator:
        before = issuer.fetches
        for number in range(20):
            await refusal(authenticator, stranger.issue("x", key_id=f"made-up-{number}"))
        assert issuer.fetches == before
        clock.advance(COOLDOWN_S)
        for number in range(20):
            await refusal(authenticator, stranger.issue("x", key_id=f"made-up-{number}"))
        assert issuer.fetches == before + 1


async def test_an_issuer_that_does_not_answer_is_no_refusal(issuer: Issuer) -> None:
    clock = ManualClock()
    issuer.broken = True
    async with checking(issuer.address, clock) as authenticator:
        with pytest.raises(Unavailable) as error:
            await authenticator.authenticate(issuer.issue("alice"), Peer())
        assert error.value.retry_after_s
        issuer.broken = False
        clock.advance(COOLDOWN_S)
        await authenticator.authenticate(issuer.issue("alice"), Peer())
        # Gone again: the last set holds for a while, then nobody can be told apart.
        issuer.broken = True
        clock.advance(STALE_S)
        await authenticator.authenticate(issuer.issue("alice"), Peer())
        clock.advance(1)
        with pytest.raises(Unavailable):
            await authenticator.authenticate(issuer.issue("alice"), Peer())


async def test_a_withdrawn_key_ends_with_the_next_set(issuer: Issuer) -> None:
    clock = ManualClock()
    async with checking(issuer.address, clock) as authenticator:
        token = issuer.issue("alice")
        await authenticator.authenticate(token, Peer())
        issuer.keys.clear()
        issuer.add("two")
        clock.advance(COOLDOWN_S)
        await authenticator.authenticate(issuer.issue("bob", key_id="two"), Peer())
        await refusal(authenticator, token)


async def test_settings_that_would_take_any_token_are_refused(tmp_path: Path) -> None:
    for changes in ({"audience": ()}, {"audience": ("",)}, {"issuer": ""}, {"jwks": ""}):
        with pytest.raises(ValueError, match="must"):
            JwtConfig(**{"jwks": "x", "issuer": "x", "audience": ("x",), **changes})
    with pytest.raises(InvalidRequest, match="https"):
        async with checking("http://issuer.test/jwks"):
            pass
    with pytest.raises(InvalidRequest, match="keys"):
        async with checking(str(tmp_path / "nowhere")):
            pass
