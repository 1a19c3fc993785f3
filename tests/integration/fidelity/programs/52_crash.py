# args: null
# args: faulthandler
# args: abort
import ctypes
import faulthandler
import os
import sys

print("before", flush=True)
if sys.argv[1] == "faulthandler":
    faulthandler.enable()
if sys.argv[1] == "abort":
    faulthandler.enable()
    os.abort()


def crash():
    ctypes.string_at(0)


crash()
