"""The other side: what programs need must work inside the walls."""

from __future__ import annotations

from codegen_mcp.sandbox.selftest.attack import Attack

_PYTHON = "https://docs.python.org/3/library/"

WORKS = (
    Attack(
        name="works: multiprocessing, threads and locks",
        wall="processes",
        source=_PYTHON + "multiprocessing.html",
        code="""
import multiprocessing, threading

with multiprocessing.get_context("fork").Pool(2) as pool:
    got = pool.map(abs, [-1, -2])
thread = threading.Thread(target=lambda: got.append(3))
thread.start()
thread.join()
held(got) if got == [1, 2, 3] else broken(got)
""",
    ),
    Attack(
        name="works: ssl, sqlite3, ctypes, asyncio and subprocess",
        wall="syscalls",
        source=_PYTHON,
        code="""
import asyncio, sqlite3, ssl, subprocess

ssl.create_default_context()
db = sqlite3.connect("planted.db")
db.execute("create table if not exists t (x)")
db.close()
os.unlink("planted.db")


async def main():
    p = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=subprocess.PIPE)
    return (await p.communicate())[0]


got = asyncio.run(main())
held(got) if got == b"hi\\n" else broken(got)
""",
    ),
    Attack(
        name="works: temporary files and shared memory",
        wall="filesystem",
        source=_PYTHON + "tempfile.html",
        code="""
import tempfile
from multiprocessing import shared_memory

with tempfile.NamedTemporaryFile() as f:
    f.write(b"x" * 100000)
    f.flush()
block = shared_memory.SharedMemory(create=True, size=65536)
block.buf[0] = 7
block.close()
block.unlink()
held("both")
""",
    ),
)
