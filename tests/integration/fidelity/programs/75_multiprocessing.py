# args: fork
# args: spawn
# args: forkserver
import multiprocessing
import os
import sys

CONSTANT = "of the module"


class Item:
    def __init__(self, value):
        self.value = value


def square(item):
    return Item(item.value**2)


def describe(queue):
    main = sys.modules["__main__"]
    queue.put((__name__, CONSTANT, main.__name__, os.path.basename(main.__file__), sys.argv[1:]))
    queue.put((sys.executable, sys.prefix, sys.path[0], tuple(sys.flags)))


def fail():
    raise ValueError("in a process")


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        print([item.value for item in pool.map(square, map(Item, range(5)))])
    queue = context.Queue()
    process = context.Process(target=describe, args=(queue,))
    process.start()
    print(queue.get(), queue.get())
    process.join()
    print(process.exitcode)
    failing = context.Process(target=fail, name="failing")
    failing.start()
    failing.join()
    print(failing.exitcode)
    exiting = context.Process(target=sys.exit, args=(5,))
    exiting.start()
    exiting.join()
    print(exiting.exitcode)
    value = context.Value("i", 1)
    lock = context.Lock()
    with lock:
        value.value += 1
    print(value.value, multiprocessing.current_process().name, multiprocessing.get_start_method())
