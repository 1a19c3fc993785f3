"""The same way out from containers, where this machine has an engine and the image of tests."""

import os

import pytest

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.testing.container_image import image_name
from codegen_mcp.testing.egress_rig import VALUE, egress_rig
from codegen_mcp.testing.outer_network import PUBLIC, OuterNetwork
from codegen_mcp.testing.worker import state_directory

pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.soak,
    pytest.mark.skipif("CODEGEN_TEST_SOAK" not in os.environ, reason="long; see ./dev test --soak"),
]

CODE = """
import os, socket, urllib.request as u
print(u.urlopen("http://web.example/").status)
try: u.urlopen("http://evil.test/")
except OSError as e: print(e.code)
ask = u.Request("https://api.example/", headers={"Authorization": os.environ["API_TOKEN"]})
print(os.environ["API_TOKEN"] in u.urlopen(ask).read().decode())
print(socket.socket().connect_ex(("93.184.216.34", 80)), socket.if_nameindex())
"""


async def test_a_container_reaches_what_is_allowed_and_nothing_else(network: OuterNetwork):
    async with state_directory() as state:
        secrets = state.parent / "secrets.toml"
        secrets.write_text(f'[API_TOKEN]\nvalue = "{VALUE}"\nhosts = ["api.example"]\n')
        secrets.chmod(0o600)
        try:
            async with egress_rig(
                network,
                state,
                names={"web.example": PUBLIC, "api.example": PUBLIC},
                egress_allow="*.example",
                egress_secrets=str(secrets),
                sandbox="container",
                require_isolation="container",
                container_image=image_name(),
                pool_size=0,
                disk_bytes=64 * 1024 * 1024,
                disk_reserve_bytes=0,
            ) as rig:
                await rig.servers.web(PUBLIC)
                await rig.servers.web(PUBLIC, 443, tls=rig.certificate("api.example"))
                done = await rig.python(await rig.session(), CODE, secrets=("API_TOKEN",))
                sent = [seen.head for seen in rig.servers.seen]
        except WorkerError as error:
            pytest.skip(error.message)
    assert done.stdout == "200\n403\nTrue\n101 [(1, 'lo')]\n", done.stderr
    assert VALUE.encode() in sent[-1]
