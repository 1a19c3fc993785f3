import asyncio


async def numbers():
    try:
        for number in range(10):
            yield number
    finally:
        print("async generator closed", flush=True)


async def main():
    async for number in numbers():
        if number == 2:
            break
    left = numbers()
    await left.__anext__()
    print("main ends")


asyncio.run(main())
