import atexit
import os
import threading

atexit.register(lambda: print("atexit in", role, flush=True))
held = open("unclosed.txt", "w")
role = "parent"
pid = os.fork()
if pid == 0:
    role = "child"
    held.write("written by the child\n")
    threading.Thread(target=print, args=("thread of the child",), kwargs={"flush": True}).start()
else:
    os.waitpid(pid, 0)
    held.write("written by the parent\n")
