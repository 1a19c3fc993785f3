"""Agents and the network: off unless they ask, narrowed as they say, refusals in their words."""

from __future__ import annotations

import pytest

from .conftest import NEW, Connect, facts, text

ASK = """
import os, urllib.request as u
print('HTTP_PROXY' in os.environ)
try: u.urlopen("http://169.254.169.254/", timeout=5)
except OSError as e: print(getattr(e, "code", "none"))
"""


@pytest.fixture
def http(connect: Connect) -> Connect:
    return lambda: connect("http", NEW)


async def test_code_has_the_network_only_when_the_agent_asks(http: Connect) -> None:
    async with http() as agent:
        assert (await agent.run(ASK))["stdout"] == "False\nnone\n"
        ran = await agent.run(ASK, allow_network=True)
        assert ran["stdout"] == "True\n403\n"
        denied = "the network refused 169.254.169.254:80 (not on the worker's allow list)"
        assert denied in ran["remedy"]


async def test_a_session_has_it_always_and_narrows_it(http: Connect) -> None:
    async with http() as agent:
        made = facts(
            await agent.call("session_create", allow_network=True, allow_hosts=["pypi.org"])
        )
        ran = await agent.run(ASK, session_id=made["session_id"])
        assert ran["stdout"] == "True\n403\n"
        more = await agent.call(
            "run_shell",
            command="true",
            session_id=made["session_id"],
            allow_network=True,
            allow_hosts=["a.example.com"],
        )
        assert more.is_error
        assert "only narrow" in text(more)


async def test_what_cannot_be_had_is_said(http: Connect) -> None:
    async with http() as agent:
        for arguments, words in (
            ({"allow_network": True, "allow_hosts": ["https://api.example.com/"]}, "write HOST"),
            ({"allow_network": True, "secrets": ["NOPE"]}, "EGRESS_SECRETS"),
            ({"secrets": ["NOPE"]}, "allow_network"),
        ):
            refused = await agent.call("run_python", code="1", **arguments)
            assert refused.is_error
            assert words in text(refused)
