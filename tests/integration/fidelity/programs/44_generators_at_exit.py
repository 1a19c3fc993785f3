def numbers(name):
    try:
        yield 1
        yield 2
    finally:
        print("closed", name, flush=True)


running = numbers("running")
next(running)
fresh = numbers("never started")
done = numbers("done")
print(list(done), flush=True)


async def coroutine():
    pass


never = coroutine()
print("end", flush=True)
