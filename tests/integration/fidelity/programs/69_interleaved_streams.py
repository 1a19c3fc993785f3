import subprocess
import sys

for number in range(5):
    print("out", number, flush=True)
    print("err", number, file=sys.stderr)
    subprocess.run(["/bin/sh", "-c", f"echo child out {number}; echo child err {number} >&2"])
print("partial", end="", flush=True)
print("no newline", end="", file=sys.stderr)
