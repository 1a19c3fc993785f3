# args: 0
# args: 9
# args: 300
import atexit
import os
import sys

atexit.register(print, "never")
print("flushed", flush=True)
print("flushed too", file=sys.stderr)
with open("file.txt", "w") as file:
    file.write("closed\n")
lost = open("lost.txt", "w")
lost.write("not flushed")
os._exit(int(sys.argv[1]))
