# args: raised
# args: signal
# args: caught
# args: atexit
import atexit
import os
import signal
import sys

atexit.register(print, "atexit runs", flush=True)
if sys.argv[1] == "raised":
    raise KeyboardInterrupt
if sys.argv[1] == "signal":
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9):
            pass
    finally:
        print("finally", flush=True)
if sys.argv[1] == "caught":
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9):
            pass
    except KeyboardInterrupt as error:
        print("caught", repr(error))
if sys.argv[1] == "atexit":

    @atexit.register
    def interrupt():
        raise KeyboardInterrupt
