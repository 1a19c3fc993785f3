"""Which checkpoint a lost session comes back from: all that was acknowledged, nothing fenced."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator.directory.base import Owner, RowState, SessionRow
from codegen_mcp.coordinator.failover import newest
from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.testing.workers_rig import SilentLink

SESSION = "ses_" + "0" * 32
OWNER = Owner(worker_id="w", incarnation=1)


class StoreLink(SilentLink):
    """Lists these checkpoints, two a page."""

    def __init__(self, *stored: str) -> None:
        super().__init__(OWNER)
        self.stored = [f"{SESSION}.{one}" for one in stored]

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        assert isinstance(request, pb.ListCheckpointsRequest)
        start = int(request.page_token or 0)
        page = self.stored[start : start + 2]
        token = str(start + 2) if start + 2 < len(self.stored) else ""
        infos = [pb.CheckpointInfo(checkpoint_id=one) for one in page]
        return pb.ListCheckpointsResponse(checkpoints=infos, next_page_token=token)


class PlainLink(SilentLink):
    """Knows no such call."""

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        raise NotImplementedYet("no frame")


def row(pointer: str, epoch: int) -> SessionRow:
    return SessionRow(
        session_id=SESSION,
        principal="alice",
        owner=OWNER,
        epoch=epoch,
        checkpoint_id=f"{SESSION}.{pointer}" if pointer else "",
        sequence=0,
        state=RowState.LIVE,
        auto_restore=False,
        adhoc=False,
        store_id="",
    )


@pytest.mark.parametrize(
    ("stored", "pointer", "last_epoch", "expected"),
    [
        pytest.param((), "", 1, "", id="there is none"),
        pytest.param(("1.1", "1.2"), "", 1, "1.2", id="saved, and not told of yet"),
        pytest.param(("1.1", "1.2"), "1.1", 1, "1.2", id="the last owner's own saves count"),
        pytest.param(("1.1", "1.2", "2.1"), "1.1", 2, "2.1", id="those of a later owner"),
        pytest.param(("1.1", "1.2"), "1.1", 2, "1.1", id="a fenced owner's late one does not"),
        pytest.param(("1.1", "3.1"), "1.1", 2, "1.1", id="nor does one of an epoch still to come"),
        pytest.param(("1.1", "1.2", "1.3"), "1.2", 3, "1.2", id="nobody saved since"),
    ],
)
async def test_the_newest_that_counts(
    stored: tuple[str, ...], pointer: str, last_epoch: int, expected: str
) -> None:
    found = await newest(StoreLink(*stored), row(pointer, last_epoch + 1), last_epoch)
    assert found == (f"{SESSION}.{expected}" if expected else "")


async def test_where_no_list_can_be_had_the_directory_is_believed() -> None:
    assert await newest(PlainLink(OWNER), row("1.1", 2), 1) == f"{SESSION}.1.1"
