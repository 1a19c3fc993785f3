"""One coordinator with two workers for all tests of a file; each finds both here and empty."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp.testing.coordinator_rig import ALICE, CoordinatorRig, coordinator_rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[CoordinatorRig]:
    """Workers "one" and "two"."""
    async with coordinator_rig("one", "two", max_sessions=10) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(pair: CoordinatorRig) -> AsyncIterator[CoordinatorRig]:
    """The pair, made whole again after the test."""
    yield pair
    for member in pair.members.values():
        member.proxy.mend()
        if member.joined is None:
            await pair.join(member)
    request = sessions_pb.ListSessionsRequest()
    listed = await pair.gateway.unary(ALICE, "SessionManagement/ListSessions", request)
    assert isinstance(listed, sessions_pb.ListSessionsResponse)
    for info in listed.sessions:
        await pair.gateway.unary(
            ALICE,
            "SessionManagement/DestroySession",
            sessions_pb.DestroySessionRequest(session_id=info.session_id, force=True),
        )
