from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp.bootstrap import open_worker
from codegen_mcp.bootstrap.coordinator import open_coordinator
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.settings import Settings
from codegen_mcp.testing.tenants import SECRET, Tenants, two_tenants


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def links(tenants: Tenants) -> tuple[str, str, str]:
    """Alice's: to get her artifact, to send another one, and that one's id."""
    alice: Any = tenants.as_(tenants.alice)
    listed = await tenants.wire.artifacts.ListArtifacts(
        pb.ListArtifactsRequest(artifact_id=tenants.hers.artifact), metadata=alice
    )
    upload = await tenants.wire.artifacts.GetUploadURL(
        pb.UploadRequest(session_id=tenants.hers.session, artifact_name="up", size_bytes=3),
        metadata=alice,
    )
    return listed.artifacts[0].download_url, upload.upload_url, upload.artifact_id


@pytest.mark.parametrize("always", [False, True])
async def test_a_link_is_its_owners(tmp_path: Path, always: bool) -> None:
    async with two_tenants(tmp_path, auth_links=always) as tenants, httpx2.AsyncClient() as http:
        get, put, _ = await links(tenants)
        bob, alice = bearer(tenants.bob), bearer(tenants.alice)

        # Who has stolen a link, and shows a token of his own, gets what never was.
        stolen = await http.get(get, headers=bob)
        assert (stolen.status_code, SECRET in stolen.text) == (404, False)
        assert (await http.put(put, content=b"bob", headers=bob)).status_code == 404
        for bad in ({"authorization": "Bearer x"}, {"authorization": tenants.alice}):
            refused = await http.get(get, headers=bad)
            assert (refused.status_code, SECRET in refused.text) == (401, False)
            assert refused.headers["www-authenticate"] == "Bearer"
        # A link by itself is enough, unless that was ruled out.
        assert (await http.get(get)).status_code == (401 if always else 200)
        assert (await http.head(get)).status_code == (401 if always else 200)
        if always:
            assert (await http.put(put, content=b"bob")).status_code == 401
        # A token by itself is not.
        assert (await http.get(get.partition("?")[0], headers=alice)).status_code == 403
        assert (await http.get(get, headers=alice)).text == SECRET
        assert (await http.put(put, content=b"hers", headers=alice)).status_code == 413
        assert (await http.put(put, content=b"own", headers=alice)).status_code == 200


async def test_a_link_opens_nothing_else_and_nothing_later(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as tenants, httpx2.AsyncClient() as http:
        get, put, uploading = await links(tenants)
        artifact = tenants.hers.artifact
        base, _, query = get.partition("?")
        expires = query.partition("expires=")[2].partition("&")[0]
        other = tenants.hers.unknown().artifact
        tried = [
            get.replace(artifact, other),
            get.replace(artifact, uploading),
            get.replace(expires, str(int(expires) + 1)),
            get.replace(expires, "0"),
            get + "&x=1",
            get[:-1] + ("0" if get[-1] != "0" else "1"),
            base,
            base + "?" + put.partition("?")[2],
        ]
        for link in tried:
            answer = await http.get(link)
            assert (answer.status_code, SECRET in answer.text) == (403, False), link
        assert (await http.put(get, content=b"bob")).status_code == 403
        assert (await http.delete(get)).status_code in {404, 405}
        assert (await http.get(get)).text == SECRET
        await tenants.wire.artifacts.DeleteArtifact(
            pb.DeleteArtifactRequest(artifact_id=artifact),
            metadata=tenants.as_(tenants.alice),  # type: ignore[arg-type]
        )
        assert (await http.get(get)).status_code == 404


async def test_what_cannot_be_kept_is_not_promised(tmp_path: Path) -> None:
    """Links of a worker's own know no principals."""
    settings = Settings(
        base_workspace=tmp_path, auth_links=True, auth_tokens=str(tmp_path / "tokens")
    )
    for opening in (open_worker, open_coordinator):
        with pytest.raises(InvalidRequest, match="AUTH_LINKS"):
            async with opening(settings):
                pass
