import fcntl
import mmap
import os
import tempfile

with open("mapped.bin", "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
    mapped[:5] = b"hello"
anonymous = mmap.mmap(-1, 100)
if os.fork() == 0:
    anonymous.write(b"from the child")
    os._exit(0)
os.wait()
print(anonymous[:14])
with open("locked", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.symlink("mapped.bin", "link")
os.link("mapped.bin", "hard")
os.chmod("locked", 0o640)
os.makedirs("deep/er/est")
os.mkfifo("fifo")
print(sorted(os.listdir(".")), os.stat("hard").st_nlink, oct(os.stat("deep").st_mode))
