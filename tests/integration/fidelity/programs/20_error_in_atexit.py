import atexit
import sys


@atexit.register
def last():
    print("runs last", flush=True)


@atexit.register
def fails():
    print("about to fail", flush=True)
    raise LookupError("in atexit")


@atexit.register
def first(*args):
    print("runs first", args, flush=True)


print("main ends", flush=True)
