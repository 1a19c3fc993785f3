"""The way out from inside a real sandbox: ordinary clients work, and there is no other way."""

import shutil

import pytest

from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.core.network import denial_words
from codegen_mcp.testing.egress_rig import EgressRig, Seen, ok
from codegen_mcp.testing.outer_network import OTHER, PUBLIC
from codegen_mcp.testing.real_packages import (
    git_repository,
    index_answer,
    installed_wheel,
    npm_answers,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


def path_of(seen: Seen) -> str:
    return seen.head.split(b" ")[1].decode()


def found(body: bytes) -> bytes:
    return ok(body) if body else ok(b"", status="404 Not Found")


async def index(rig: EgressRig) -> dict[str, str]:
    """Serve a real package over https; returns the variables that trust its certificate."""
    name, wheel = installed_wheel("h11")

    def answer(seen: Seen) -> bytes:
        body = index_answer({name: wheel}, path_of(seen))
        kind = "text/html" if path_of(seen).startswith("/simple") else "application/zip"
        return ok(body, f"Content-Type: {kind}") if body else found(b"")

    await rig.servers.web(PUBLIC, 443, tls=rig.certificate("index.example"), answer=answer)
    return {"PIP_CERT": "/workspace/ca.pem", "SSL_CERT_FILE": "/workspace/ca.pem"}


async def with_authority(rig: EgressRig) -> str:
    session = await rig.session()
    files = rig.engine.sessions.workspace(session)
    await files.write("ca.pem", rig.authority.ca.read_bytes(), create_dirs=False, mode=None)
    return session


async def test_pip_installs_a_real_package_over_https(web):
    env = await index(web)
    session = await with_authority(web)
    _, pip = installed_wheel("pip")
    files = web.engine.sessions.workspace(session)
    await files.write("pip.whl", pip, create_dirs=False, mode=None)
    done = await web.shell(
        session,
        "PYTHONPATH=pip.whl python -m pip install --disable-pip-version-check --target /tmp/p "
        "--index-url https://index.example/simple h11 && "
        "PYTHONPATH=/tmp/p python -c 'import h11; print(h11.__version__)'",
        env=env,
    )
    assert "Successfully installed h11" in done.stdout, done.stderr
    assert done.denied == {}


async def test_uv_installs_a_real_package_over_https(web):
    env = await index(web)
    session = await with_authority(web)
    done = await web.shell(
        session,
        "UV_CACHE_DIR=/tmp/c $(command -v uv || echo /run/codegen/tools/uv) pip install -q "
        "--target /tmp/p --index-url https://index.example/simple h11 && "
        "PYTHONPATH=/tmp/p python -c 'import h11; print(h11.__version__)'",
        env=env,
    )
    assert done.stdout.strip(), done.stderr


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
async def test_npm_installs_a_package(web):
    answers = npm_answers("tiny-thing", "http://npm.example")
    await web.servers.web(PUBLIC, answer=lambda seen: found(answers.get(path_of(seen), b"")))
    session = await web.session()
    done = await web.shell(
        session,
        "npm install --no-audit --no-fund --loglevel error --cache /tmp/npm "
        "--registry http://npm.example tiny-thing && "
        "node -e 'console.log(require(\"tiny-thing\"))'",
        timeout_s=60,
    )
    assert "from npm" in done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
async def test_git_clones_over_http(web, workdir):
    bare = git_repository(workdir)

    def answer(seen: Seen) -> bytes:
        file = bare / path_of(seen).partition("?")[0].removeprefix("/repo.git/")
        return found(file.read_bytes() if file.is_file() else b"")

    await web.servers.web(PUBLIC, answer=answer)
    done = await web.shell(
        await web.session(), "git clone -q http://git.example/repo.git r && cat r/hello.txt"
    )
    assert done.stdout == "from git\n", done.stderr


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_curl_works_by_http_socks_and_follows_no_redirect_to_metadata(web):
    def answer(seen: Seen) -> bytes:
        if path_of(seen) == "/go":
            return ok(b"", "Location: http://meta.example/latest/", status="302 Found")
        return ok(b"hello")

    await web.servers.web(PUBLIC, answer=answer)
    done = await web.shell(
        await web.session(),
        "curl -s http://web.example/; echo; "
        "curl -s -x socks5h://127.0.0.1:3128 http://web.example/; echo; "
        "curl -s -L http://web.example/go",
    )
    assert done.stdout.startswith("hello\nhello\ncodegen egress proxy: resolves to a metadata")
    assert done.denied == {"meta.example:80": "resolves to a metadata service"}


async def test_there_is_no_other_way_out(web):
    await web.servers.web(PUBLIC)
    code = f"""
import socket, errno
def attempt(name, *kind, to=("{PUBLIC}", 80)):
    try:
        s = socket.socket(*kind)
        s.settimeout(3)
        s.connect(to)
        s.send(b"x")
        print(name, "LEFT")
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, error))
attempt("tcp", socket.AF_INET, socket.SOCK_STREAM)
attempt("udp", socket.AF_INET, socket.SOCK_DGRAM)
attempt("tcp6", socket.AF_INET6, socket.SOCK_STREAM, to=("2606:2800:220:1::10", 80))
attempt("raw", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
attempt("packet", socket.AF_PACKET, socket.SOCK_RAW, to=("lo", 0))
attempt("vsock", 40, socket.SOCK_STREAM, to=(2, 80))
try:
    print("dns", socket.getaddrinfo("web.example", 80))
except OSError as error:
    print("dns refused")
print(sorted(name for _, name in socket.if_nameindex()))
"""
    done = await web.python(await web.session(), code)
    lines = done.stdout.splitlines()
    assert "LEFT" not in done.stdout
    assert lines[0] == "tcp ENETUNREACH"
    assert lines[1] == "udp ENETUNREACH"
    assert lines[-2:] == ["dns refused", "['lo']"]
    assert web.servers.seen == []


async def test_the_way_out_is_open_only_while_a_task_that_may_use_it_runs(web):
    await web.servers.web(PUBLIC)
    session = await web.session()
    code = (
        "import os, socket\n"
        "print(socket.socket().connect_ex(('127.0.0.1', 3128)), 'HTTP_PROXY' in os.environ)"
    )
    assert (await web.python(session, code)).stdout == "0 True\n"
    assert (await web.python(session, code, allow_network=False)).stdout == "111 False\n"
    assert (await web.python(session, code)).stdout == "0 True\n"


async def test_a_process_that_is_left_behind_loses_the_network_with_its_task(web):
    await web.servers.echo(PUBLIC, 443)
    session = await web.session()
    await web.python(
        session,
        "import os, socket, time\n"
        "s = socket.create_connection(('127.0.0.1', 3128))\n"
        "s.sendall(b'CONNECT web.example:443 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); s.recv(100)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True: s.send(b'still here'); time.sleep(0.01)\n",
    )
    sent = len(web.servers.seen)
    await web.python(session, "import time; time.sleep(0.3)", allow_network=False)
    assert len(web.servers.seen) == sent


async def test_the_port_cannot_be_taken_from_the_proxy(web):
    await web.servers.web(PUBLIC)
    session = await web.session()
    code = (
        "import socket\ns = socket.socket()\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', 3128)); s.listen()"
    )
    assert "Address already in use" in (await web.python(session, code)).stderr
    # Without the network it is the session's to use, and free again for the next task.
    assert (await web.python(session, code, allow_network=False)).stderr == ""
    fetch = "import urllib.request as u; print(u.urlopen('http://web.example/').status)"
    assert (await web.python(session, fetch)).stdout == "200\n"


async def test_sessions_do_not_share_a_way_out(web):
    await web.servers.web(PUBLIC)
    await web.servers.web(OTHER)
    narrow = await web.session(allow_network=True, allow_hosts=("web.example",))
    wide = await web.session()
    fetch = (
        "import urllib.request as u\n"
        "for host in ('web', 'other'):\n"
        "    try: print(u.urlopen(f'http://{host}.example/').status)\n"
        "    except OSError as e: print(e.code)"
    )
    first = await web.python(narrow, fetch, allow_network=False)  # the session has it always
    assert first.stdout == "200\n403\n"
    assert first.denied == {"other.example:80": "not on the session's allow list"}
    assert (await web.python(wide, fetch)).stdout == "200\n200\n"
    third = await web.python(wide, fetch, allow_hosts=("other.example:80",))
    assert third.stdout == "403\n200\n"


async def test_a_denial_is_named_in_the_result_and_its_remedy(web):
    done = await web.python(
        await web.session(),
        "import urllib.request as u\nfor _ in '123': \n    try: u.urlopen('https://evil.test/')\n"
        "    except OSError: pass",
    )
    (denial,) = done.result.metadata.network_denied
    assert (denial.host, denial.port, denial.count) == ("evil.test", 443, 3)
    assert denial_words([denial]) in done.result.metadata.remedy


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"allow_hosts": ("https://web.example",)}, InvalidRequest, "without scheme"),
        ({"allow_hosts": ("web.example:0",)}, InvalidRequest, "a port is a number"),
        ({"allow_hosts": ("w*b.example",)}, InvalidRequest, "no host name"),
        ({"allow_hosts": ("evil.test",)}, WrongState, "only narrow"),
        ({"allow_hosts": ("web.example:8080",)}, WrongState, "only narrow"),
        ({"allow_hosts": ("*",)}, WrongState, "only narrow"),
        ({"secrets": ("NO_SUCH",)}, InvalidRequest, "this worker has not"),
        ({"secrets": ("ALICES_TOKEN",)}, InvalidRequest, "this worker has not"),
        ({"secrets": ("API_TOKEN",), "allow_network": False}, InvalidRequest, "allow_network"),
    ],
)
async def test_a_task_cannot_ask_for_more_than_it_may_have(web, options, kind, words):
    session = await web.session(user_id="bob")
    with pytest.raises(kind, match=words):
        await web.python(session, "1", **options)


@pytest.mark.parametrize("hosts", [("evil.test",), ("*",), ("http://web.example",)])
async def test_a_session_cannot_ask_for_more_than_the_worker_has(web, hosts):
    with pytest.raises((InvalidRequest, WrongState)):
        await web.session(allow_hosts=hosts)


async def test_a_fork_has_its_parents_list(web):
    await web.servers.web(OTHER)
    parent = await web.session(allow_hosts=("web.example",))
    (child,) = await web.engine.sessions.fork(parent, 1)
    done = await web.python(
        child.session_id, "import urllib.request as u; u.urlopen('http://other.example')"
    )
    assert done.denied == {"other.example:80": "not on the session's allow list"}
    with pytest.raises(WrongState):
        await web.python(child.session_id, "1", allow_hosts=("other.example",))


async def test_a_restored_session_has_its_list(web):
    await web.servers.web(OTHER)
    session = await web.session(allow_network=True, allow_hosts=("web.example",))
    info = await web.engine.checkpoints.save(session)
    restored = await web.engine.checkpoints.restore(
        str(info.checkpoint_id), create_new_session=True
    )
    done = await web.python(
        restored.session_id,
        "import urllib.request as u; u.urlopen('http://other.example')",
        allow_network=False,
    )
    assert done.denied == {"other.example:80": "not on the session's allow list"}
