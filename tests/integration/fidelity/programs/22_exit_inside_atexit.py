# args: 5
# args: text
# args: none
import atexit
import sys


@atexit.register
def after():
    print("the others still run", flush=True)


@atexit.register
def leave():
    print("leaving", flush=True)
    if sys.argv[1] == "5":
        sys.exit(5)
    if sys.argv[1] == "text":
        sys.exit("a message from atexit")
    raise SystemExit


print("main", flush=True)
