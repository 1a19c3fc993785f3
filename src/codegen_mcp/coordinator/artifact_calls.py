"""ArtifactService's calls: an artifact is its session's, and outlives it.

Its id does not say whose it is, so that is asked for: of the workers, for the session; of the
directory, for that session's principal. Uploads are remembered here until they are recorded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.calls import SessionCalls
from codegen_mcp.coordinator.directory.base import SessionRow
from codegen_mcp.coordinator.merged_pages import Fetch, Page, merged
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Routes
from codegen_mcp.core.errors import NotFound, NotImplementedYet, WorkerError
from codegen_mcp.engine.artifacts.facts import no_artifact
from codegen_mcp.server.convert import MAX_PAYLOAD_BYTES, not_negative

MAX_PAGE = 100
"""As on the worker: the labels of one may have 16 KiB."""
REMEMBERED = 100_000
"""Uploads that were announced."""


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact, and a worker that has it."""

    info: pb.ArtifactMetadata
    link: WorkerLink


class ArtifactFace:
    """Announces, records, lists and deletes the artifacts of principals."""

    def __init__(self, routes: Routes, calls: SessionCalls) -> None:
        self._routes = routes
        self._calls = calls
        self._uploads: OrderedDict[tuple[str, str], str] = OrderedDict()
        """Principal and artifact to the worker that takes the upload."""

    async def upload_url(
        self, principal: Principal, request: pb.UploadRequest
    ) -> pb.UploadResponse:
        """Announce an upload."""
        answer = await self._calls.unary(
            principal, request.session_id, "ArtifactService/GetUploadURL", request
        )
        assert isinstance(answer, pb.UploadResponse)
        row = await self._routes.row(principal, request.session_id)
        if row.owner is not None:
            self._uploads[principal.name, answer.artifact_id] = row.owner.worker_id
            while len(self._uploads) > REMEMBERED:
                self._uploads.popitem(last=False)
        return answer

    async def record(
        self, principal: Principal, request: pb.ArtifactMetadata
    ) -> pb.ArtifactResponse:
        """Make an upload an artifact; once more where it is one already."""
        worker_id = self._uploads.get((principal.name, request.artifact_id))
        if worker_id is None:
            found = await self._find(principal, request.artifact_id)
            if found is None:
                raise refusals.no_upload(request.artifact_id)
            link = found.link
        else:
            worker = self._routes.workers.named(worker_id)
            if worker is None or worker.link is None:
                raise refusals.upload_away(request.artifact_id)
            link = worker.link
        asked = pb.ArtifactMetadata()
        asked.CopyFrom(request)
        answer = await link.unary("ArtifactService/RecordArtifact", asked)
        assert isinstance(answer, pb.ArtifactResponse)
        return answer

    async def page(
        self, principal: Principal, request: pb.ListArtifactsRequest
    ) -> pb.ListArtifactsResponse:
        """One page, newest first, or one by its id."""
        if request.artifact_id:
            found = await self._find(principal, request.artifact_id)
            if found is None:
                raise no_artifact(request.artifact_id)
            return pb.ListArtifactsResponse(artifacts=[found.info])
        if request.session_id:
            try:
                await self._routes.row(principal, request.session_id, ended=True)
            except NotFound:
                return pb.ListArtifactsResponse()  # as of a session that never was
        size = min(not_negative("page_size", request.page_size) or MAX_PAGE, MAX_PAGE)
        known: dict[str, bool] = {}

        async def mine(one: pb.ArtifactMetadata) -> bool:
            if one.session_id not in known:
                known[one.session_id] = await self._owns(principal, one.session_id)
            return known[one.session_id]

        page = await merged(
            [self._fetch(link, request, size) for link in self._links()],
            request.page_token,
            size=size,
            room_bytes=MAX_PAYLOAD_BYTES,
            place=lambda one: (one.created_at_ms, one.artifact_id),
            bytes_of=lambda one: one.ByteSize() + 16,
            mine=mine,
        )
        if request.task_id and not known:
            await mine(pb.ArtifactMetadata())  # as much work as for a task of somebody else
        return pb.ListArtifactsResponse(artifacts=page.entries, next_page_token=page.token)

    async def delete(
        self, principal: Principal, request: pb.DeleteArtifactRequest
    ) -> pb.DeleteArtifactResponse:
        """Delete one; whether there was one that is theirs."""
        found = await self._find(principal, request.artifact_id)
        if found is None:
            return pb.DeleteArtifactResponse()
        answer = await found.link.unary("ArtifactService/DeleteArtifact", request)
        assert isinstance(answer, pb.DeleteArtifactResponse)
        return answer

    def _links(self) -> Sequence[WorkerLink]:
        return [one.link for one in self._routes.workers.all() if one.link is not None]

    def _fetch(
        self, link: WorkerLink, request: pb.ListArtifactsRequest, size: int
    ) -> Fetch[pb.ArtifactMetadata]:
        async def fetch(token: str) -> Page[pb.ArtifactMetadata]:
            asked = pb.ListArtifactsRequest(
                session_id=request.session_id,
                task_id=request.task_id,
                page_size=size,
                page_token=token,
            )
            try:
                answer = await link.unary("ArtifactService/ListArtifacts", asked)
            except NotImplementedYet:
                return Page([], "")  # it keeps none
            except WorkerError as error:
                if refusals.is_broken(error):
                    return Page([], "")  # it is away; what others have can be shown
                raise
            assert isinstance(answer, pb.ListArtifactsResponse)
            return Page(answer.artifacts, answer.next_page_token)

        return fetch

    async def _owns(self, principal: Principal, session_id: str) -> bool:
        row: SessionRow | None = await self._routes.directory.get(session_id)
        return row is not None and row.principal == principal.name

    async def _find(self, principal: Principal, artifact_id: str) -> Found | None:
        """One that is recorded, and the principal's.

        Raises:
            InvalidRequest: That is no id of an artifact. Unavailable: A worker that may have it
            does not answer now, and none of the others has it.
        """
        asked = pb.ListArtifactsRequest(artifact_id=artifact_id)
        failed: WorkerError | None = None
        others = ""
        for link in self._links():
            try:
                answer = await link.unary("ArtifactService/ListArtifacts", asked)
            except (NotFound, NotImplementedYet):
                continue
            except WorkerError as error:
                if not refusals.is_broken(error):
                    raise
                failed = error
                continue
            assert isinstance(answer, pb.ListArtifactsResponse)
            for info in answer.artifacts:
                # A peer that knows no look-up by id sends a page of whatever it has.
                if info.artifact_id != artifact_id or info.session_id == others:
                    continue
                if await self._owns(principal, info.session_id):
                    return Found(info, link)
                others = info.session_id
        if not others:
            # What never was takes as much work as what is another's.
            await self._owns(principal, "")
        if failed is not None:
            raise failed
        return None
