from multiprocessing import Manager, Process, shared_memory


def fill(name, values):
    block = shared_memory.SharedMemory(name=name)
    block.buf[:5] = b"hello"
    block.close()
    values["child"] = "was here"


if __name__ == "__main__":
    block = shared_memory.SharedMemory(create=True, size=100)
    with Manager() as manager:
        values = manager.dict()
        process = Process(target=fill, args=(block.name, values))
        process.start()
        process.join()
        print(bytes(block.buf[:5]), dict(values))
    block.close()
    block.unlink()
