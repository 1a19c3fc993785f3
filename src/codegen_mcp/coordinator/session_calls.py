"""SessionManagement's calls, but for those of checkpoints."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as lifecycle_pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.adhoc import ADHOC_KEY
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.calls import SessionCalls, Unheld
from codegen_mcp.coordinator.directory.base import Commit, RowState, SessionRow
from codegen_mcp.coordinator.making import Maker
from codegen_mcp.coordinator.placement import Wanted
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.core.errors import FieldNotSupported, NotFound, WorkerError
from codegen_mcp.server.convert import not_negative
from codegen_mcp.version import __version__

log = structlog.get_logger()

MAX_PAGE = 500
AT_ONCE = 16
"""Sessions asked about at the same time for one answer."""
LOOK_S = 3.0
"""How long a list waits for what a worker says of one session."""
AWAY = "its worker cannot be reached at this moment"
LOST = "worker_lost: it is restored from its newest checkpoint when it is next used"
ASLEEP = "it lies in its checkpoint, and is restored when it is next used"


class SessionFace:
    """Makes, ends, describes and lists the sessions of principals."""

    def __init__(self, routes: Routes, calls: SessionCalls, maker: Maker, name: str) -> None:
        """``name``: of the coordinator, in answers about all workers."""
        self._routes = routes
        self._calls = calls
        self._maker = maker
        self._name = name

    async def create(
        self, principal: Principal, request: pb.CreateSessionRequest
    ) -> pb.CreateSessionResponse:
        """Make a session where there is room."""
        refuse_chosen("session_id", request.session_id)
        refuse_chosen("epoch", request.epoch)
        config = request.config
        adhoc = request.metadata.get(ADHOC_KEY) == "1"
        asked = pb.CreateSessionRequest()
        asked.CopyFrom(request)
        asked.worker_id = ""
        asked.metadata.pop(ADHOC_KEY, None)

        async def ask(row: SessionRow, link: WorkerLink) -> tuple[pb.CreateSessionResponse, str]:
            asked.session_id, asked.epoch = row.session_id, row.epoch
            answer = await link.unary("SessionManagement/CreateSession", asked, epoch=row.epoch)
            assert isinstance(answer, pb.CreateSessionResponse)
            return answer, answer.session_id

        wanted = Wanted(
            worker_id=request.worker_id,
            language=config.language,
            tools=frozenset(config.required_tools),
        )
        answer, _ = await self._maker.place(
            principal, wanted, ask, auto_restore=config.auto_restore, adhoc=adhoc
        )
        return answer

    async def destroy(
        self, principal: Principal, request: pb.DestroySessionRequest
    ) -> pb.DestroySessionResponse:
        """End a session; what nobody holds is not brought back for that."""
        session_id = request.session_id
        row = await self._routes.directory.get(session_id) if session_id else None
        if row is None or row.principal != principal.name or row.state is RowState.ENDED:
            raise refusals.no_session(session_id)
        if row.state is RowState.LOST or row.owner is None:
            if request.save_checkpoint and not row.checkpoint_id:
                held = await self._calls.held(principal, session_id)
                row = held.row
            else:
                saved = row.checkpoint_id if request.save_checkpoint else ""
                return await self._ended(row, checkpoint_id=saved)

        async def work(held: Held) -> pb.DestroySessionResponse:
            try:
                answer = await held.link.unary(
                    "SessionManagement/DestroySession", request, epoch=held.row.epoch
                )
            except NotFound as error:
                if not refusals.is_gone(error) or request.save_checkpoint:
                    raise
                return await self._ended(held.row)
            assert isinstance(answer, pb.DestroySessionResponse)
            if answer.checkpoint_id:
                pointer = Commit(
                    session_id=session_id,
                    epoch=held.row.epoch,
                    checkpoint_id=answer.checkpoint_id,
                )
                (kept,) = await self._routes.directory.commit(held.owner, [pointer])
                if not kept:
                    raise refusals.fenced(session_id)
            await self._ended(held.row)
            return answer

        return await self._calls.attempt(
            principal,
            session_id,
            work,
            what="the end",
            repeatable=not request.save_checkpoint,
            uses=False,
        )

    async def _ended(
        self, row: SessionRow, *, checkpoint_id: str = ""
    ) -> pb.DestroySessionResponse:
        self._routes.forget(row.session_id)
        await self._routes.directory.end(row.session_id, row.epoch)
        return pb.DestroySessionResponse(destroyed=True, checkpoint_id=checkpoint_id)

    async def status(
        self, principal: Principal, request: pb.SessionStatusRequest
    ) -> pb.SessionStatusResponse:
        """A session as it is now; asking does not bring it back."""
        session_id = request.session_id

        async def work(held: Held) -> pb.SessionStatusResponse:
            answer = await held.link.unary(
                "SessionManagement/GetSessionStatus", request, epoch=held.row.epoch
            )
            assert isinstance(answer, pb.SessionStatusResponse)
            return answer

        try:
            return await self._calls.attempt(
                principal,
                session_id,
                work,
                what="a look",
                repeatable=True,
                uses=False,
                revive=False,
            )
        except Unheld:
            row = await self._routes.row(principal, session_id)
            return pb.SessionStatusResponse(
                session_id=session_id,
                state=common_pb2.SESSION_STATE_FAILED,
                info=absent(row),
                last_checkpoint_id=row.checkpoint_id,
                auto_restore=row.auto_restore,
            )

    async def page(
        self, principal: Principal, request: pb.ListSessionsRequest
    ) -> pb.ListSessionsResponse:
        """One page of the principal's own, whichever worker has them.

        Pages are by id, and the sessions of one page oldest first.
        """
        size = min(not_negative("page_size", request.page_size) or MAX_PAGE, MAX_PAGE)
        rows = await self._routes.directory.sessions(
            principal=principal.name, after=request.page_token, limit=size + 1
        )
        infos = await self._infos(principal, rows[:size])
        infos.sort(key=lambda info: (info.created_at_ms, info.session_id))
        token = rows[size - 1].session_id if len(rows) > size else ""
        return pb.ListSessionsResponse(sessions=infos, next_page_token=token)

    async def capacity(self, principal: Principal) -> lifecycle_pb.SessionCapacity:
        """The room of all workers together, and the principal's own sessions."""
        workers = [worker for worker in self._routes.workers.all() if worker.link is not None]
        facts: Counter[tuple[str, str]] = Counter()
        total = active = free = 0
        for worker in workers:
            facts.update(worker.registration.metadata.items())
            total += worker.total
            active += worker.occupied
            free += 0 if worker.draining else max(0, worker.total - worker.occupied)
        shared = {name: text for (name, text), many in facts.items() if many == len(workers)}
        rows = await self._routes.directory.sessions(principal=principal.name, limit=MAX_PAGE)
        return lifecycle_pb.SessionCapacity(
            total_sessions=total,
            active_sessions=active,
            available_sessions=free,
            sessions=await self._infos(principal, rows),
            metadata={**shared, "workers": str(len(workers))},
            worker_id=self._name,
            version=__version__,
        )

    async def _infos(
        self, principal: Principal, rows: Sequence[SessionRow]
    ) -> list[common_pb2.SessionInfo]:
        at_once = asyncio.Semaphore(AT_ONCE)

        async def one(row: SessionRow) -> common_pb2.SessionInfo | None:
            link = self._routes.linked(row)
            if link is None:
                return absent(row)
            request = pb.SessionStatusRequest(session_id=row.session_id)
            async with at_once:
                try:
                    async with asyncio.timeout(LOOK_S):
                        answer = await link.unary(
                            "SessionManagement/GetSessionStatus", request, epoch=row.epoch
                        )
                except TimeoutError:
                    return absent(row)
                except WorkerError as error:
                    if refusals.is_gone(error):
                        back = await self._routes.ended_there(row)
                        return absent(row) if back else None
                    log.info("session.not_listed", session_id=row.session_id, error=error.message)
                    return absent(row)
            assert isinstance(answer, pb.SessionStatusResponse)
            return answer.info

        found = await asyncio.gather(*map(one, rows))
        return [info for info in found if info is not None]


def absent(row: SessionRow) -> common_pb2.SessionInfo:
    """Describe a session that nobody can be asked about now."""
    held = ASLEEP if row.owner is None else AWAY
    return common_pb2.SessionInfo(
        session_id=row.session_id,
        state=common_pb2.SESSION_STATE_FAILED,
        note=LOST if row.state is RowState.LOST else held,
        epoch=row.epoch,
        last_checkpoint_id=row.checkpoint_id,
        last_sequence=row.sequence,
    )


def refuse_chosen(field: str, value: object) -> None:
    """Refuse what only a coordinator may choose.

    Raises:
        FieldNotSupported: It is set.
    """
    if value:
        raise FieldNotSupported(
            f"{field} is chosen by the coordinator; leave it empty", metadata={"field": field}
        )
