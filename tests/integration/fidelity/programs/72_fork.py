import os
import sys
import time

file = open("shared.txt", "w")
file.write("from the parent\n")
file.flush()
for code in (0, 3):
    pid = os.fork()
    if pid == 0:
        print("child", code, flush=True)
        file.write(f"from child {code}\n")
        sys.exit(code)
    _, status = os.waitpid(pid, 0)
    print("parent", os.waitstatus_to_exitcode(status), flush=True)
pid = os.fork()
if pid == 0:
    raise RuntimeError("in a child")
print("failed child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
pid = os.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", "print('executed')"])
os.wait()
pid = os.posix_spawn("/bin/echo", ["echo", "spawned"], os.environ)
os.waitpid(pid, 0)
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(reader)
    os.write(writer, b"through a pipe")
    os._exit(0)
os.close(writer)
print(os.read(reader, 100))
os.wait()
