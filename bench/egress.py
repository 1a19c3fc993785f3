"""What the way out costs: a request through the proxy beside the same one made directly.

Server, proxy and client are in this process; the ways cross two network namespaces, so this needs
root. Each request has a connection of its own, but where it says otherwise.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from stats import Samples, Target

from codegen_mcp.testing.egress_rig import VALUE, EgressRig, egress_rig, ok
from codegen_mcp.testing.outer_network import PUBLIC, OuterNetwork, outer_network, why_not
from codegen_mcp.testing.worker import state_directory

N = int(os.environ.get("BENCH_N", "60")) * 4
BODY = b"x" * 1024
REQUEST = "GET {} HTTP/1.1\r\nHost: web.example\r\nAuthorization: {}\r\nConnection: {}\r\n\r\n"
PORT = 3128
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
RUN = "import time\n{}\nprint(*(f'{{t:.9f}}' for t in took))"
TIMED = """
import http.client, os, ssl
took = []
def one(make, path, host='web.example', times=1, token=''):
    began = time.perf_counter()
    c = make()
    for _ in range(times):
        c.request('GET', path, headers={'Authorization': token})
        c.getresponse().read()
    c.close()
    took.append((time.perf_counter() - began) / times)
"""


async def answer(stream: Streams, *, keep: bool = False) -> None:
    """Read one answer."""
    reader, writer = stream
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(BODY))
    if not keep:
        writer.close()


async def timed(samples: Samples, work: Callable[[], Awaitable[None]]) -> None:
    """Time one."""
    began = time.perf_counter()
    await work()
    samples.add(time.perf_counter() - began)


async def direct(network: OuterNetwork, port: int, tls: ssl.SSLContext | None = None) -> Streams:
    """Connect to the server as the proxy does."""
    sock = network.near.make_socket(2, 1)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (PUBLIC, port))
    name = "web.example" if tls else None
    return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)


async def inside(rig: EgressRig, code: str, **options: object) -> list[float]:
    """Run a program that times itself inside a sandbox."""
    session = await rig.session()
    done = await rig.python(session, RUN.format(TIMED + code), **options)
    await rig.end_sessions()
    assert done.stdout, done.stderr
    return [float(word) for word in done.stdout.split()]


async def measure(_: Path) -> tuple[list[Samples], list[Target]]:
    """Requests by every way, and what opening it adds to a run."""
    if why_not():
        print(f"  not measured: {why_not()}")
        return [], []
    names = (
        "GET, direct",
        "GET, from a sandbox by the proxy",
        "TLS GET, direct",
        "TLS GET, from a sandbox by a tunnel",
        "TLS GET with a secret, new connection",
        "TLS GET with a secret, same connection",
        "run, no network",
        "run, way out opened",
        "run, way out opened, with a secret",
    )
    s = {name: Samples(name) for name in names}
    with outer_network() as network:
        async with state_directory() as state:
            secrets = state.parent / "secrets.toml"
            secrets.write_text(f'[TOKEN]\nvalue = "{VALUE}"\nhosts = ["web.example"]\n')
            secrets.chmod(0o600)
            async with egress_rig(
                network,
                state,
                names={"web.example": PUBLIC},
                egress_allow="web.example",
                egress_secrets=str(secrets),
                disk_bytes=64 << 20,
                disk_reserve_bytes=0,
            ) as rig:
                await fill(rig, network, s)
    targets = [
        Target("run with the way out / run", s[names[7]].p50 / s[names[6]].p50, 1.5),
        Target("GET by the proxy / direct", s[names[1]].p50 / s[names[0]].p50, 6.0),
        Target("TLS GET by a tunnel / direct", s[names[3]].p50 / s[names[2]].p50, 5.0),
        Target("TLS GET with a secret / by a tunnel", s[names[4]].p50 / s[names[3]].p50, 4.0),
    ]
    return list(s.values()), targets


async def fill(rig: EgressRig, network: OuterNetwork, s: dict[str, Samples]) -> None:
    """Take the samples."""
    reply = ok(BODY)
    trust = ssl.create_default_context(cafile=str(rig.authority.ca))
    await rig.servers.web(PUBLIC, 80, answer=lambda _: reply)
    await rig.servers.web(PUBLIC, 443, answer=lambda _: reply, tls=rig.certificate("web.example"))
    close = REQUEST.format("/", "", "close").encode()

    async def get(port: int, tls: ssl.SSLContext | None = None) -> None:
        stream = await direct(network, port, tls)
        stream[1].write(close)
        await answer(stream)

    for number in range(N + 5):
        for name, port, tls in (("GET, direct", 80, None), ("TLS GET, direct", 443, trust)):
            samples = s[name] if number >= 5 else Samples("warm-up")
            await timed(samples, lambda port=port, tls=tls: get(port, tls))
    proxy = f"http.client.HTTPConnection('127.0.0.1', {PORT})"
    secure = f"http.client.HTTPSConnection('127.0.0.1', {PORT}, context=context)"
    plain = f"for _ in range({N}): one(lambda: {proxy}, 'http://web.example/')"
    tunnel = f"def make():\n    c = {secure}\n    c.set_tunnel('web.example', 443)\n    return c\n"
    unchecked = "context = ssl._create_unverified_context()\n"
    checked = "context = ssl.create_default_context()\n"
    token = "token=os.environ['TOKEN']"
    for name, code, options in (
        ("GET, from a sandbox by the proxy", plain, {}),
        (
            "TLS GET, from a sandbox by a tunnel",
            unchecked + tunnel + f"for _ in range({N}): one(make, '/')",
            {},
        ),
        (
            "TLS GET with a secret, new connection",
            checked + tunnel + f"for _ in range({N}): one(make, '/', {token})",
            {"secrets": ("TOKEN",)},
        ),
        (
            "TLS GET with a secret, same connection",
            checked + tunnel + f"for _ in range(10): one(make, '/', times={N // 10}, {token})",
            {"secrets": ("TOKEN",)},
        ),
    ):
        for took in await inside(rig, code, **options):
            s[name].add(took)
    session = await rig.session()
    for number in range(N // 4 + 3):
        for name, options in (
            ("run, no network", {"allow_network": False}),
            ("run, way out opened", {}),
            ("run, way out opened, with a secret", {"secrets": ("TOKEN",)}),
        ):

            async def run(options: dict[str, object] = options) -> None:
                await rig.python(session, "print(1)", **options)

            await asyncio.sleep(0.02)
            await timed(s[name] if number >= 3 else Samples("warm-up"), run)
