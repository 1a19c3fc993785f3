# args: limit
# args: raised
# args: thread
# args: repr
# args: c
import sys
import threading

depth = 0


def dive():
    global depth
    depth += 1
    dive()


if sys.argv[1] == "limit":
    try:
        dive()
    except RecursionError as error:
        print(depth, error)
    sys.setrecursionlimit(300)
    depth = 0
    try:
        dive()
    except RecursionError as error:
        print(depth, error)
if sys.argv[1] == "raised":
    sys.setrecursionlimit(20000)

    def to(n):
        return n and 1 + to(n - 1)

    print(to(15000))
if sys.argv[1] == "thread":
    threading.stack_size(256 * 1024 * 1024)
    sys.setrecursionlimit(100000)

    def to(n):
        return n and 1 + to(n - 1)

    thread = threading.Thread(target=lambda: print(to(50000)))
    thread.start()
    thread.join()
if sys.argv[1] == "repr":
    nested = []
    for _ in range(100000):
        nested = [nested]
    repr(nested)
if sys.argv[1] == "c":
    import json

    json.dumps(__import__("functools").reduce(lambda inner, _: [inner], range(5000), []))
