# stdin: for the child\nand the rest\n
import subprocess
import sys

print("parent reads nothing", flush=True)
subprocess.run(["/bin/cat"])
print(repr(sys.stdin.read()), flush=True)
subprocess.run([sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"])
