"""SessionManagement's calls for checkpoints and forks.

A checkpoint is its session's, and its id names that; so it is known whose it is before any worker
is asked. One that was taken is answered only when the directory points to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.calls import SessionCalls
from codegen_mcp.coordinator.directory.base import Commit, RowState, SessionRow
from codegen_mcp.coordinator.failover import Failover
from codegen_mcp.coordinator.making import Maker, row_for
from codegen_mcp.coordinator.merged_pages import Fetch, Page, merged
from codegen_mcp.coordinator.placement import Placement, Refused, Wanted
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.coordinator.session_calls import refuse_chosen
from codegen_mcp.core.checkpoint import parse_checkpoint_id
from codegen_mcp.core.errors import InvalidRequest, NotFound, NotImplementedYet, Unavailable
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.engine.checkpoints.catalog import not_found as no_checkpoint
from codegen_mcp.server.convert import MAX_PAYLOAD_BYTES, not_negative

MAX_PAGE = 500
MAX_COPIES = 64


class CheckpointFace:
    """Saves, restores, branches and lists for principals."""

    def __init__(
        self,
        routes: Routes,
        calls: SessionCalls,
        maker: Maker,
        failover: Failover,
        placement: Placement,
    ) -> None:
        self._routes = routes
        self._calls = calls
        self._maker = maker
        self._failover = failover
        self._placement = placement

    async def save(
        self, principal: Principal, request: pb.CheckpointRequest
    ) -> pb.CheckpointResponse:
        """Save; answered when it is what a restore would find."""

        async def work(held: Held) -> pb.CheckpointResponse:
            answer = await held.link.unary(
                "SessionManagement/CheckpointSession", request, epoch=held.row.epoch
            )
            assert isinstance(answer, pb.CheckpointResponse)
            await self._point_to(held, answer.checkpoint_id)
            return answer

        return await self._calls.attempt(
            principal, request.session_id, work, what="a checkpoint", repeatable=False
        )

    async def _point_to(self, held: Held, checkpoint_id: str) -> None:
        """Make it what the directory knows.

        Raises:
            Conflict: Another worker holds the session by now.
        """
        pointer = Commit(
            session_id=held.row.session_id, epoch=held.row.epoch, checkpoint_id=checkpoint_id
        )
        (kept,) = await self._routes.directory.commit(held.owner, [pointer])
        if not kept:
            self._routes.forget(held.row.session_id)
            raise refusals.fenced(held.row.session_id)

    async def restore(self, principal: Principal, request: pb.RestoreRequest) -> pb.RestoreResponse:
        """Restore into a new session, or in place."""
        refuse_chosen("session_id", request.session_id)
        refuse_chosen("epoch", request.epoch)
        row = await self._row_of(principal, request.checkpoint_id)
        if request.create_new_session:
            return await self._restore_new(principal, row, request)
        return await self._restore_in_place(principal, row, request)

    async def _restore_new(
        self, principal: Principal, source: SessionRow, request: pb.RestoreRequest
    ) -> pb.RestoreResponse:
        info = await self._info(source, request.checkpoint_id)

        async def ask(row: SessionRow, link: WorkerLink) -> tuple[pb.RestoreResponse, str]:
            asked = pb.RestoreRequest(
                checkpoint_id=request.checkpoint_id,
                create_new_session=True,
                session_id=row.session_id,
                epoch=row.epoch,
            )
            answer = await link.unary("SessionManagement/RestoreSession", asked, epoch=row.epoch)
            assert isinstance(answer, pb.RestoreResponse)
            return answer, answer.session_id

        wanted = self._reading(source, worker_id=request.worker_id)
        answer, _ = await self._maker.place(
            principal, wanted, ask, auto_restore=info.metadata.auto_restore
        )
        return answer

    def _reading(self, row: SessionRow, *, worker_id: str = "") -> Wanted:
        """Workers that can read its checkpoints."""
        if row.store_id or row.owner is None or worker_id:
            return Wanted(store_id=row.store_id, worker_id=worker_id)
        return Wanted(worker_id=row.owner.worker_id)

    async def _restore_in_place(
        self, principal: Principal, row: SessionRow, request: pb.RestoreRequest
    ) -> pb.RestoreResponse:
        asked = pb.RestoreRequest(checkpoint_id=request.checkpoint_id)
        if row.state is RowState.ENDED:
            raise refusals.session_ended(row.session_id)
        if row.state is RowState.LOST or row.owner is None:
            info = await self._info(row, request.checkpoint_id)
            held = await self._failover.revive(row, request.checkpoint_id)
            status = await held.link.unary(
                "SessionManagement/GetSessionStatus",
                pb.SessionStatusRequest(session_id=row.session_id),
                epoch=held.row.epoch,
            )
            assert isinstance(status, pb.SessionStatusResponse)
            return pb.RestoreResponse(
                session_id=row.session_id,
                worker_id=held.owner.worker_id,
                state=status.state,
                checkpoint_metadata=info.metadata,
                lost=status.lost,
            )

        async def work(held: Held) -> pb.RestoreResponse:
            if request.worker_id not in {"", held.owner.worker_id}:
                raise refusals.held_elsewhere(row.session_id, held.owner.worker_id)
            asked.session_id, asked.epoch = row.session_id, held.row.epoch
            answer = await held.link.unary(
                "SessionManagement/RestoreSession", asked, epoch=held.row.epoch
            )
            assert isinstance(answer, pb.RestoreResponse)
            await self._make_newest(held, request.checkpoint_id)
            return answer

        return await self._calls.attempt(
            principal, row.session_id, work, what="a restore", repeatable=False
        )

    async def _make_newest(self, held: Held, checkpoint_id: str) -> None:
        """After a step back: save it, where later ones are stored.

        Who restores the session when its worker is lost takes the newest of its owner, because
        saves that happen by themselves are known here only some time later.
        """
        request = pb.ListCheckpointsRequest(session_id=held.row.session_id, page_size=1)
        try:
            listed = await held.link.unary("SessionManagement/ListCheckpoints", request)
        except NotImplementedYet:
            return
        assert isinstance(listed, pb.ListCheckpointsResponse)
        if [one.checkpoint_id for one in listed.checkpoints] != [checkpoint_id]:
            saved = await held.link.unary(
                "SessionManagement/CheckpointSession",
                pb.CheckpointRequest(session_id=held.row.session_id, incremental=True),
                epoch=held.row.epoch,
            )
            assert isinstance(saved, pb.CheckpointResponse)
            checkpoint_id = saved.checkpoint_id
        await self._point_to(held, checkpoint_id)

    async def fork(self, principal: Principal, request: pb.ForkRequest) -> pb.ForkResponse:
        """Copy a session; all copies or none."""
        refuse_chosen("new_session_ids", request.new_session_ids)
        count = request.count or 1
        if not 1 <= count <= MAX_COPIES:
            raise InvalidRequest(f"count={count!r} must be 1 to {MAX_COPIES}; fork again for more")

        async def work(held: Held) -> pb.ForkResponse:
            first = row_for(
                principal,
                held.owner,
                held.row.store_id,
                auto_restore=held.row.auto_restore,
            )
            rows = [first, *(replace(first, session_id=new_session_id()) for _ in range(count - 1))]
            asked = pb.ForkRequest()
            asked.CopyFrom(request)
            asked.count = count
            asked.new_session_ids.extend(row.session_id for row in rows)
            try:
                async with self._maker.reserved(principal, rows, held.link):
                    answer = await held.link.unary(
                        "SessionManagement/ForkSession", asked, epoch=held.row.epoch
                    )
                    assert isinstance(answer, pb.ForkResponse)
                    await self._maker.settle(principal, rows, answer.session_ids)
                    return answer
            except Refused as refused:
                raise refused.error from refused

        return await self._calls.attempt(
            principal, request.session_id, work, what="a fork", repeatable=False
        )

    async def get(
        self, principal: Principal, request: pb.GetCheckpointRequest
    ) -> pb.GetCheckpointResponse:
        """All that is known of one."""
        row = await self._row_of(principal, request.checkpoint_id)
        info = await self._info(row, request.checkpoint_id)
        return pb.GetCheckpointResponse(checkpoint=info)

    async def _info(self, row: SessionRow, checkpoint_id: str) -> pb.CheckpointInfo:
        answer = await self._reader(row).unary(
            "SessionManagement/GetCheckpoint",
            pb.GetCheckpointRequest(checkpoint_id=checkpoint_id),
        )
        assert isinstance(answer, pb.GetCheckpointResponse)
        return answer.checkpoint

    async def delete(
        self, principal: Principal, request: pb.DeleteCheckpointRequest
    ) -> pb.DeleteCheckpointResponse:
        """Delete one."""
        row = await self._row_of(principal, request.checkpoint_id)
        answer = await self._reader(row).unary("SessionManagement/DeleteCheckpoint", request)
        assert isinstance(answer, pb.DeleteCheckpointResponse)
        return answer

    async def page(
        self, principal: Principal, request: pb.ListCheckpointsRequest
    ) -> pb.ListCheckpointsResponse:
        """One page: of a session, alive or gone, or of all that the principal ever had."""
        size = min(not_negative("page_size", request.page_size) or MAX_PAGE, MAX_PAGE)
        if request.session_id:
            try:
                row = await self._routes.row(principal, request.session_id, ended=True)
            except NotFound:
                return pb.ListCheckpointsResponse()  # as of a session that never was
            rows: Sequence[SessionRow] = [row]
        else:
            rows = await self._with_checkpoints(principal)
        page = await merged(
            [self._fetch(row, request, size) for row in rows],
            request.page_token,
            size=size,
            room_bytes=MAX_PAYLOAD_BYTES,
            place=lambda one: (one.metadata.created_at_ms, one.checkpoint_id),
            bytes_of=lambda one: one.ByteSize() + 16,
            mine=_always,
        )
        return pb.ListCheckpointsResponse(checkpoints=page.entries, next_page_token=page.token)

    def _fetch(
        self, row: SessionRow, request: pb.ListCheckpointsRequest, size: int
    ) -> Fetch[pb.CheckpointInfo]:
        async def fetch(token: str) -> Page[pb.CheckpointInfo]:
            try:
                link = self._reader(row)
            except Unavailable:
                if request.session_id:
                    raise
                return Page([], "")  # of a worker that is away; its other ones can be shown
            asked = pb.ListCheckpointsRequest(
                session_id=row.session_id,
                workspace_id=request.workspace_id,
                page_size=size,
                page_token=token,
            )
            answer = await link.unary("SessionManagement/ListCheckpoints", asked)
            assert isinstance(answer, pb.ListCheckpointsResponse)
            return Page(answer.checkpoints, answer.next_page_token)

        return fetch

    async def _with_checkpoints(self, principal: Principal) -> list[SessionRow]:
        """Sessions that may have some: those that are not ended, and those known to."""
        found: list[SessionRow] = []
        after = ""
        while True:
            rows = await self._routes.directory.sessions(
                principal=principal.name, live_only=False, after=after, limit=MAX_PAGE
            )
            found += [one for one in rows if one.checkpoint_id or one.state is not RowState.ENDED]
            if len(rows) < MAX_PAGE:
                return found
            after = rows[-1].session_id

    async def _row_of(self, principal: Principal, checkpoint_id: str) -> SessionRow:
        """The session of a checkpoint, alive or gone.

        Raises:
            NotFound: It is not the principal's, or never was.
        """
        own = parse_checkpoint_id(checkpoint_id)
        row = await self._routes.directory.get(own.session_id)
        if row is None or row.principal != principal.name:
            raise no_checkpoint(own)
        return row

    def _reader(self, row: SessionRow) -> WorkerLink:
        """Whoever can read its checkpoints: who holds it, else any worker with that store.

        Raises:
            Unavailable: None is here.
        """
        link = self._routes.linked(row)
        if link is not None:
            return link
        for worker in self._routes.workers.all():
            same = row.store_id and worker.registration.store_id == row.store_id
            if worker.link is not None and (same or not row.store_id):
                return worker.link
        raise refusals.store_away(row.session_id)


async def _always(_: object) -> bool:
    return True
