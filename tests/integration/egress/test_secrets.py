"""Secrets: requests that may have one have it, and it is found nowhere else."""

import asyncio
import base64
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.testing.egress_rig import VALUE, EgressRig, ok
from codegen_mcp.testing.outer_network import OTHER, PUBLIC

pytestmark = pytest.mark.asyncio(loop_scope="package")

SECRET = VALUE.encode()
FORMS = (
    SECRET,
    base64.b64encode(SECRET)[:-4],
    base64.b64encode(b"u:" + SECRET)[8:-4],
    base64.b64encode(b"x" + SECRET)[4:-4],
    base64.b64encode(b"xx" + SECRET)[4:-4],
    SECRET.hex().encode(),
    SECRET[::-1],
)
CALL = """
import os, urllib.request
def call(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
token = os.environ["API_TOKEN"]
"""


async def api(rig: EgressRig, answer=None) -> None:
    await rig.servers.web(PUBLIC, 443, tls=rig.certificate("api.example"), answer=answer)


def has_secret(data: bytes) -> list[bytes]:
    return [form for form in FORMS if form in data]


async def test_a_request_to_a_permitted_host_carries_the_value_and_code_sees_a_placeholder(web):
    await api(web)
    done = await web.python(
        await web.session(),
        CALL + "print(token)\nprint(call('https://api.example/me', Authorization='Bearer '+token))",
        secrets=("API_TOKEN",),
    )
    placeholder, *echoed = done.stdout.splitlines()
    assert placeholder.startswith("cgs_")
    assert len(placeholder) == len(VALUE)
    (seen,) = web.servers.seen
    assert f"authorization: Bearer {VALUE}".encode() in seen.head
    # The server sends back what it was sent: the placeholder stands there again.
    assert f"authorization: Bearer {placeholder}" in echoed
    assert VALUE not in done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_a_password_of_basic_authentication_is_put_in_and_taken_out(web):
    await api(web)
    done = await web.shell(
        await web.session(),
        'curl -sS -u "user:$API_TOKEN" https://api.example/; curl -sS -u "$API_TOKEN:" '
        "https://api.example/",
        secrets=("API_TOKEN",),
    )
    sent = [seen.head for seen in web.servers.seen]
    assert base64.b64encode(b"user:" + SECRET) in sent[0], done.stderr
    assert base64.b64encode(SECRET + b":") in sent[1]
    assert not has_secret(done.stdout.encode())


async def test_other_hosts_and_other_fields_get_the_placeholder(web):
    await api(web)
    await web.servers.web(PUBLIC, 80)
    await web.servers.web(OTHER, 80)
    done = await web.python(
        await web.session(),
        CALL
        + "call('https://api.example/'+token, Cookie=token, **{'User-Agent': token})\n"
        + "call('http://api.example/', Authorization=token)\n"  # in the clear: never
        + "call('http://other.example/', Authorization=token)\n"
        + "print('done')",
        secrets=("API_TOKEN",),
    )
    assert done.stdout == "done\n", done.stderr
    assert len(web.servers.seen) == 3
    for seen in web.servers.seen:
        assert not has_secret(seen.head)
        assert b"cgs_" in seen.head


async def test_a_task_that_does_not_name_the_secret_has_neither_value_nor_placeholder(web):
    await api(web)
    session = await web.session()
    first = await web.python(session, CALL + "print(token)", secrets=("API_TOKEN",))
    placeholder = first.stdout.strip()
    again = await web.python(session, CALL + "print(token)", secrets=("API_TOKEN",))
    assert again.stdout.strip() == placeholder  # what was written to a file stays of use
    done = await web.python(
        session,
        "import os, ssl, urllib.request as u\n"
        "print('API_TOKEN' in os.environ, 'SSL_CERT_FILE' in os.environ)\n"
        f"r = u.Request('https://api.example/', headers={{'Authorization': {placeholder!r}}})\n"
        "u.urlopen(r, context=ssl._create_unverified_context()).read()",
    )
    assert done.stdout == "False False\n", done.stderr
    assert placeholder.encode() in web.servers.seen[-1].head
    other = await web.session()
    code = CALL + f"print(token == {placeholder!r})"
    done = await web.python(other, code, secrets=("API_TOKEN",))
    assert done.stdout == "False\n"


async def test_a_server_whose_certificate_is_not_good_gets_nothing(web):
    await web.servers.web(PUBLIC, 443, tls=web.certificate("somebody-else.example"))
    done = await web.python(
        await web.session(),
        CALL + "print(call('https://api.example/', Authorization=token))",
        secrets=("API_TOKEN",),
    )
    assert "502" in done.stdout
    assert "certificate" in done.stdout
    assert web.servers.seen == []


async def test_another_host_cannot_be_named_on_a_permitted_connection(web):
    await api(web)
    done = await web.python(
        await web.session(),
        CALL + "print(call('https://api.example/', Host='evil.example', Authorization=token))",
        secrets=("API_TOKEN",),
    )
    assert done.stdout.startswith("421")
    assert web.servers.seen == []


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


async def test_a_value_that_comes_back_in_pieces_is_taken_out(web):
    pieces = [b"a" + SECRET[:5], SECRET[5:9], SECRET[9:] + b"z", b" " + SECRET, b"!"]
    await api(web, lambda seen: chunked(*pieces))
    done = await web.python(
        await web.session(),
        CALL + "print(call('https://api.example/', Authorization=token).replace(token, 'TOKEN'))",
        secrets=("API_TOKEN",),
    )
    assert done.stdout == "aTOKENz TOKEN!\n"


async def test_events_are_not_held_back_for_the_next_one(web):
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"6\r\nevent\n\r\n")
        await writer.drain()
        await reader.read()  # until the client has seen it and goes

    await web.servers.start(PUBLIC, 443, stream, tls=web.certificate("api.example"))
    done = await web.python(
        await web.session(),
        CALL + "r = urllib.request.urlopen('https://api.example/')\nprint(r.readline())",
        secrets=("API_TOKEN",),
        timeout_s=10,
    )
    assert done.stdout == "b'event\\n'\n", done.stderr


async def test_an_answer_that_cannot_be_read_is_not_passed_on(web):
    await api(web, lambda seen: ok(b"\x1f\x8bwhatever", "Content-Encoding: gzip"))
    done = await web.python(
        await web.session(),
        CALL + "print(call('https://api.example/', Authorization=token))",
        secrets=("API_TOKEN",),
    )
    assert done.stdout.startswith("502")
    assert b"accept-encoding: identity" in web.servers.seen[0].head


async def test_a_connection_serves_many_requests(web):
    await api(web)
    done = await web.python(
        await web.session(),
        "import http.client, os, ssl\n"
        "c = http.client.HTTPSConnection('127.0.0.1', 3128)\n"
        "c.set_tunnel('api.example', 443)\n"
        "for n in range(5):\n"
        "    c.request('POST', f'/{n}', body=b'x' * 70000, headers="
        "{'Authorization': os.environ['API_TOKEN']})\n"
        "    r = c.getresponse(); r.read(); print(r.status)",
        secrets=("API_TOKEN",),
    )
    assert done.stdout == "200\n" * 5, done.stderr
    assert [len(seen.body) for seen in web.servers.seen] == [70000] * 5


async def test_the_secret_is_found_nowhere_after_a_run_that_used_it(web, capfd):
    """Acceptance: output, log, checkpoint, artifact, /proc and every file."""
    await api(web)
    session = await web.session()
    code = (
        CALL
        + """
import glob, os, pathlib, time
said = call('https://api.example/me', Authorization='Bearer ' + token)
os.makedirs('artifacts', exist_ok=True)
pathlib.Path('artifacts/answer.txt').write_text(said)
pathlib.Path('environment.txt').write_text(repr(dict(os.environ)))
seen = b''
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try: seen += pathlib.Path(path).read_bytes()
    except OSError: pass
for path in pathlib.Path('/run/codegen/trust').rglob('*'):
    if path.is_file(): seen += path.read_bytes()
pathlib.Path('seen.bin').write_bytes(seen)
print(said)
pathlib.Path('ready').touch()
while not os.path.exists('go'): time.sleep(0.01)
"""
    )
    run = asyncio.ensure_future(web.python(session, code, secrets=("API_TOKEN",), timeout_s=60))
    files = web.engine.sessions.workspace(session)
    try:
        async with asyncio.timeout(30):
            while not run.done() and not await _there(files, "ready"):
                await asyncio.sleep(0.02)
        sandbox = await web.engine.sessions.session(session).sandbox()
        pids = sandbox.processes()
        assert pids
        for pid in pids:
            assert not await asyncio.to_thread(_in_memory, pid, FORMS), f"in the memory of {pid}"
        # The search itself works: what code was given is there.
        written = (await files.read("environment.txt", 0, 1 << 20))[0]
        placeholder = written.partition(b"'API_TOKEN': '")[2].partition(b"'")[0]
        assert placeholder.startswith(b"cgs_")
        assert any([await asyncio.to_thread(_in_memory, pid, (placeholder,)) for pid in pids])
    finally:
        await files.write("go", b"", create_dirs=False, mode=None)
        done = await run
    assert done.result.status.name == "SUCCESS", done.stderr
    assert any(SECRET in seen.head for seen in web.servers.seen)  # it was used
    info = await web.engine.checkpoints.save(session)
    told = json.dumps([done.stdout, done.stderr, repr(done.result), repr(info)]).encode()
    captured = capfd.readouterr()
    assert not has_secret(told + captured.out.encode() + captured.err.encode())
    found = await asyncio.to_thread(_search, web.engine.host.state.root)
    assert found == []


async def _there(files, name: str) -> bool:
    found, _ = await files.list(".", recursive=False, pattern="", limit=100)
    return any(one.path == name.encode() for one in found)


def _in_memory(pid: int, forms: tuple[bytes, ...]) -> bool:
    """Whether one lies in a writable page, an argument or a variable of a process."""
    words = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    if any(form in words for form in forms):
        return True
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if not mode.startswith("rw"):
                continue
            try:
                memory.seek(start)
                found = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            if any(form in found for form in forms):
                return True
    return False


def _search(root: Path) -> list[str]:
    """Files below the worker's state (workspaces, records, checkpoints, artifacts) that have it."""
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                data = b"".join(_written(path))
                if has_secret(data) or (data[:2] == b"\x1f\x8b" and has_secret(_inflated(data))):
                    found.append(str(path))
    return found


def _written(path: Path) -> Iterator[bytes]:
    """What was ever written of a file: images of disks are mostly holes."""
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield os.pread(file.fileno(), end - start, start)


def _inflated(data: bytes) -> bytes:
    return gzip.decompress(data)
