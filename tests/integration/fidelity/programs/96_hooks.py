# args: excepthook
# args: failing
# args: exiting
# args: unraisable
# args: threading
# args: display
# args: deleted
# args: late
import atexit
import sys
import threading
import traceback

way = sys.argv[1]


def hook(kind, value, trace):
    print("hook", kind.__name__, value, len(traceback.extract_tb(trace)), flush=True)
    print(traceback.extract_stack(), sys.exc_info(), flush=True)
    if way == "failing":
        raise LookupError("in the hook")
    if way == "exiting":
        sys.exit(17)


def fail():
    raise ValueError("uncaught")


if way in ("excepthook", "failing", "exiting"):
    sys.excepthook = hook
    fail()
if way == "unraisable":

    def unraisable(args):
        print(args.exc_type, args.exc_value, args.err_msg, type(args.object), flush=True)

    sys.unraisablehook = unraisable

    class Bad:
        def __del__(self):
            fail()

    Bad()
    at_end = Bad()
    atexit.register(fail)
if way == "threading":
    threading.excepthook = lambda args: print(args.exc_type, args.exc_value, args.thread.name)
    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()
if way == "display":
    sys.displayhook(None)
    sys.displayhook([1, 2])
    print(_)
    exec(compile("1 + 1", "<s>", "single"))
if way == "deleted":
    del sys.excepthook
    fail()
if way == "late":

    @atexit.register
    def show_last():
        print(sys.last_type, sys.last_value, sys.last_traceback is not None, flush=True)

    fail()
