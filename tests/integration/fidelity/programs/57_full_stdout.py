import os
import sys

full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 1)
sys.stdout.write("does not fit")
print("to stderr", file=sys.stderr)
