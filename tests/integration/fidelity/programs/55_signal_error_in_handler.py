import os
import signal


def handler(number, frame):
    print("in frame", frame.f_code.co_name, frame.f_lineno, frame.f_back, flush=True)
    raise RuntimeError("from the handler")


signal.signal(signal.SIGTERM, handler)
os.kill(os.getpid(), signal.SIGTERM)
