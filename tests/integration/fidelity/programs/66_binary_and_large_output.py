import os
import sys

sys.stdout.buffer.write(bytes(range(256)) * 4)
sys.stdout.buffer.flush()
for number in range(20000):
    sys.stdout.write(f"line {number:06d} of a large output, more than a pipe holds\n")
sys.stdout.flush()
os.write(1, b"\xff\x00" * 1000)
sys.stdout.buffer.write(b"\xf0\x9f\x98")
sys.stdout.buffer.flush()
sys.stdout.buffer.write(b"\x80\n")
print("e" * 300000, file=sys.stderr)
