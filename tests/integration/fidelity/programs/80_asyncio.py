import asyncio
import signal
import os
import sys


async def child():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "print(input()[::-1])",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(b"reversed\n")
    return out, process.returncode


async def failing():
    await asyncio.sleep(0)
    raise ValueError("from a task")


async def main():
    loop = asyncio.get_running_loop()
    got = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, got.set_result, "signal")
    os.kill(os.getpid(), signal.SIGUSR1)
    print(await got, await child())
    print(await asyncio.gather(*(asyncio.sleep(0.001 * n, n) for n in range(3))))
    print(await asyncio.gather(failing(), return_exceptions=True))
    print(await asyncio.to_thread(lambda: "in a thread"))
    print(await loop.run_in_executor(None, len, "abc"))
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(b"over the loopback\n")
    print(await reader.readline())
    writer.close()
    server.close()
    print(type(loop).__name__, loop.get_debug())
    return 3


async def echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


sys.exit(asyncio.run(main()))
