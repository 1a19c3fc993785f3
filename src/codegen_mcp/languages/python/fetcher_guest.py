"""Runs inside the fetcher's sandbox: asks uv for a resolution, downloads what the worker chose.

Standard library only, Python 3.8 or later (it runs under the session's interpreter), nothing of
ours is imported. Its working directory is the only place it can write to. Requests come as JSON
lines on standard input, one answer line each goes to standard output; end of file ends it. All it
can reach is the index, through ``proxy.sock``, whatever it tries.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import html.parser
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import urllib.parse
import urllib.request
import zipfile
from typing import Any, Callable, Dict  # noqa: UP035 - Python 3.8

Message = Dict[str, Any]  # noqa: UP006 - Python 3.8

CHUNK = 256 * 1024
PAGE_BYTES = 64 * 1024 * 1024
PYPROJECT_BYTES = 256 * 1024
WORDS_BYTES = 64 * 1024
LOCK_BYTES = 8 * 1024 * 1024


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Carry bytes one way, then close that direction."""
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
    except OSError:
        pass
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def carry(client: socket.socket) -> None:
    """Join one TCP connection with the proxy's Unix socket."""
    upstream = socket.socket(socket.AF_UNIX)
    try:
        upstream.connect("proxy.sock")
    except OSError:
        client.close()
        return
    back = threading.Thread(target=pump, args=(upstream, client), daemon=True)
    back.start()
    pump(client, upstream)
    back.join()
    client.close()
    upstream.close()


def serve(listener: socket.socket) -> None:
    """Accept for ever."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=carry, args=(client,), daemon=True).start()


def start_bridge() -> str:
    """Listen on loopback, for tools that know no Unix sockets; return the proxy's URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class Guest:
    """Answers the worker's requests."""

    def __init__(self, job: Message) -> None:
        self.job = job
        self.proxy = start_bridge()
        context = ssl.create_default_context(cafile=job["ca"] or None)
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}),
            urllib.request.HTTPSHandler(context=context),
        )

    def compile(self, request: Message) -> Message:
        """Run ``uv pip compile``: no build, no settings, no host file."""
        with open("requirements.in", "w") as file:
            file.write("\n".join(request["requirements"]) + "\n")
        os.makedirs("stubs", exist_ok=True)
        for name, content in request["stubs"].items():
            with open(os.path.join("stubs", name), "wb") as stub:
                stub.write(base64.b64decode(content))
        argv = [self.job["uv"], "pip", "compile", "--no-config", "--no-build", "--no-progress"]
        argv += ["--no-header", "--no-annotate", "--python", self.job["python"]]
        argv += ["--no-python-downloads", "--format", "pylock.toml", *request["arguments"]]
        if request["stubs"]:
            argv += ["--find-links", "stubs"]
        argv += ["requirements.in"]
        env = dict(self.job["env"], **request["env"])
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            env[name] = env[name.lower()] = self.proxy
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True)
        return {
            "code": done.returncode,
            "lock": done.stdout[:LOCK_BYTES].decode("utf-8", "replace"),
            "words": done.stderr[-WORDS_BYTES:].decode("utf-8", "replace"),
        }

    def download(self, request: Message) -> Message:
        """Get files into ``out``; each answer has what was really written."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return {"files": list(pool.map(self.download_one, request["files"]))}

    def download_one(self, file: Message) -> Message:
        """Get one file, at most ``max_bytes`` of it."""
        digest, size = hashlib.sha256(), 0
        path = os.path.join("out", file["name"])
        try:
            headers = dict(file["headers"], **{"Accept-Encoding": "identity"})
            ask = urllib.request.Request(file["url"], headers=headers)
            with self.opener.open(ask, timeout=60) as answer, open(path, "xb") as out:
                while True:
                    data = answer.read(CHUNK)
                    if not data:
                        break
                    size += len(data)
                    if size > file["max_bytes"]:
                        raise OSError(f"larger than {file['max_bytes']} bytes")
                    digest.update(data)
                    out.write(data)
        except Exception as error:
            return {"name": file["name"], "error": explain(error)}
        return {"name": file["name"], "size": size, "sha256": digest.hexdigest()}

    def sources(self, request: Message) -> Message:
        """List the source distributions on a project's page (PEP 503 or 691)."""
        headers = dict(
            request["headers"],
            Accept="application/vnd.pypi.simple.v1+json, text/html;q=0.5",
        )
        try:
            ask = urllib.request.Request(request["url"], headers=headers)
            with self.opener.open(ask, timeout=60) as answer:
                body = answer.read(PAGE_BYTES)
                base, kind = answer.geturl(), answer.headers.get_content_type()
        except Exception as error:
            return {"files": [], "error": explain(error)}
        files = json_links(body) if kind.endswith("json") else html_links(body)
        found = []
        for file in files:
            if not file["name"].endswith((".tar.gz", ".zip")) or file["yanked"]:
                continue
            file["url"] = urllib.parse.urljoin(base, file["url"])
            found.append(file)
        return {"files": found[-500:]}

    def pyproject(self, request: Message) -> Message:
        """Read ``pyproject.toml`` of a source distribution that was downloaded."""
        try:
            return {"text": read_pyproject(os.path.join("out", request["name"]))}
        except Exception as error:
            return {"text": "", "error": explain(error)}

    def nothing(self, request: Message) -> Message:
        """Show that the sandbox works."""
        return {}

    def interpreter(self, request: Message) -> Message:
        """Let uv look at the interpreter of ``/venv``, and return what it keeps about it."""
        argv = [self.job["uv"], "pip", "list", "--offline", "--no-config"]
        argv += ["--python", "/venv/bin/python"]
        subprocess.run(
            argv, env=self.job["env"], stdin=subprocess.DEVNULL, capture_output=True, timeout=15
        )
        files = {}
        cache = self.job["env"]["UV_CACHE_DIR"]
        for root, _, names in os.walk(cache):
            for name in names:
                path = os.path.join(root, name)
                if name.endswith(".msgpack"):
                    with open(path, "rb") as file:
                        content = base64.b64encode(file.read()).decode()
                    files[os.path.relpath(path, cache)] = content
        return {"files": files}


def read_pyproject(path: str) -> str:
    """Return the top-level ``pyproject.toml`` of an archive, empty where there is none."""
    if path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.count("/") == 1 and name.endswith("/pyproject.toml"):
                    with archive.open(name) as file:
                        return file.read(PYPROJECT_BYTES).decode("utf-8", "replace")
        return ""
    with tarfile.open(path, "r|gz") as stream:
        for entry in stream:
            if entry.isreg() and entry.name.count("/") == 1:
                if not entry.name.endswith("/pyproject.toml"):
                    continue
                member = stream.extractfile(entry)
                return member.read(PYPROJECT_BYTES).decode("utf-8", "replace") if member else ""
    return ""


def explain(error: Exception) -> str:
    """Say what went wrong, in one bounded line."""
    return f"{type(error).__name__}: {error}"[:500]


def json_links(body: bytes) -> list[Message]:
    """Read a PEP 691 page."""
    return [
        {
            "name": str(file.get("filename", "")),
            "url": str(file.get("url", "")),
            "sha256": str(file.get("hashes", {}).get("sha256", "")),
            "requires_python": str(file.get("requires-python") or ""),
            "yanked": bool(file.get("yanked", False)),
        }
        for file in json.loads(body).get("files", [])
    ]


class LinkParser(html.parser.HTMLParser):
    """Reads the anchors of a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[Message] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one anchor."""
        values = dict(attrs)
        href = values.get("href")
        if tag != "a" or not href:
            return
        url, _, fragment = href.partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        self.links.append(
            {
                "name": name,
                "url": url,
                "sha256": fragment[7:] if fragment.startswith("sha256=") else "",
                "requires_python": values.get("data-requires-python") or "",
                "yanked": "data-yanked" in values,
            }
        )


def html_links(body: bytes) -> list[Message]:
    """Read a PEP 503 page."""
    parser = LinkParser()
    parser.feed(body.decode("utf-8", "replace"))
    return parser.links


def confine(limits: dict[str, int]) -> None:
    """Set what the sandbox around us does not."""
    for name, value in limits.items():
        number = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(number, (value, value))


def main() -> None:
    """Serve until end of file."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints by mistake must not look like an answer
    job = json.loads(sys.stdin.readline())
    confine(job["limits"])
    os.makedirs("out", exist_ok=True)
    guest = Guest(job)
    calls: Dict[str, Callable[[Message], Message]] = {  # noqa: UP006 - Python 3.8
        "compile": guest.compile,
        "download": guest.download,
        "sources": guest.sources,
        "pyproject": guest.pyproject,
        "interpreter": guest.interpreter,
        "nothing": guest.nothing,
    }
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(calls[request["do"]](request)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
