import atexit
import os
import sys

atexit.register(lambda: (print("bye", flush=True), os._exit(7)))
atexit.register(print, "before it", flush=True)
sys.exit(3)
