# args: error
# args: cancelled
# args: interrupt
# args: pending
# args: unretrieved
# args: forgotten
# args: exit
import asyncio
import os
import signal
import sys


async def sleeper(name):
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        print("cancelled", name, flush=True)
        raise
    finally:
        print("finally", name, flush=True)


async def fail():
    raise ValueError("unretrieved")


async def main(way):
    task = asyncio.create_task(sleeper("background"))
    await asyncio.sleep(0)
    if way == "error":
        raise RuntimeError("main failed")
    if way == "cancelled":
        task.cancel()
        await task
    if way == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(1000)
    if way == "exit":
        sys.exit(4)


if sys.argv[1] == "pending":
    loop = asyncio.new_event_loop()
    task = loop.create_task(sleeper("never finished"), name="pending-task")
    loop.run_until_complete(asyncio.sleep(0))
elif sys.argv[1] == "unretrieved":
    loop = asyncio.new_event_loop()
    task = loop.create_task(fail(), name="failing-task")
    loop.run_until_complete(asyncio.sleep(0))
    del task
    print("deleted", flush=True)
elif sys.argv[1] == "forgotten":

    async def outer():
        sleeper("never awaited")

    asyncio.run(outer())
    fail()
    kept = fail()
else:
    asyncio.run(main(sys.argv[1]))
