import bz2
import gzip
import io
import lzma
import os

files = [
    gzip.GzipFile("a.gz", "wb", mtime=0),
    bz2.open("b.bz2", "wb"),
    lzma.open("c.xz", "wb"),
]
for file in files:
    file.write(b"compressed, never closed\n" * 10)
text = io.TextIOWrapper(gzip.GzipFile("d.gz", "wb", mtime=0))
text.write("text\n")
text.flush()
print(sorted(name for name in os.listdir(".") if name[1:2] == "."))
