import os
import subprocess
import sys

print(os.path.exists(sys.executable), sys.executable)
code = "import sys; print(sys.executable, sys.prefix, sys.path, sys.argv, sys.flags)"
print(subprocess.check_output([sys.executable, "-c", code, "a"], text=True))
print(subprocess.run(["python", "-c", "import sys; sys.exit(7)"]).returncode)
print(subprocess.check_output("command -v python python3 sh", shell=True, text=True))
done = subprocess.run(["sh", "-c", "cat; exit 3"], input=b"given", capture_output=True)
print(done)
try:
    subprocess.run(["false"], check=True)
except subprocess.CalledProcessError as error:
    print(error)
try:
    subprocess.run(["sleep", "100"], timeout=0.05)
except subprocess.TimeoutExpired as error:
    print(type(error), error.cmd)
try:
    subprocess.run(["no-such-program"])
except FileNotFoundError as error:
    print(error)
print(subprocess.run(["sh", "-c", "kill -9 $$"]).returncode)
fds = subprocess.check_output(["sh", "-c", "echo /proc/self/fd/*"], text=True)
print(fds)
print(subprocess.getoutput("echo $HOME $PWD; id -u; umask"))
