import atexit
import os
import tempfile

named = tempfile.NamedTemporaryFile(prefix="named-", dir=".")
named.write(b"gone at the end")
directory = tempfile.TemporaryDirectory(prefix="directory-", dir=".")
with open(os.path.join(directory.name, "inside"), "w") as file:
    file.write("x")
kept = tempfile.NamedTemporaryFile(delete=False, dir=".")
kept.write(b"kept, never closed")
os.rename(kept.name, "kept")
spooled = tempfile.SpooledTemporaryFile(max_size=10)
spooled.write(b"more than ten bytes")
print(tempfile.gettempdir(), sorted(name.partition("-")[0] for name in os.listdir(".")))
atexit.register(lambda: print(sorted(n.partition("-")[0] for n in os.listdir(".")), flush=True))
