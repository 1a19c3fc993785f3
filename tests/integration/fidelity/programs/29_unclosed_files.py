import io
import sys

text = open("text.txt", "w")
text.write("text\n")
buffered = open("buffered.bin", "wb")
buffered.write(b"bytes")
appended = open("text.txt", "a")
appended.write("more")
both = open("both.bin", "w+b")
both.write(b"0123456789")
both.seek(3)
both.write(b"xyz")
small = open("small.txt", "w", buffering=16)
small.write("0123456789" * 3)
exclusive = open("exclusive.txt", "x", encoding="utf-16")
exclusive.write("äöü")


class Holder:
    def __init__(self, name):
        self.file = open(name, "w")
        self.me = self


holder = Holder("cycle.txt")
holder.file.write("held in a cycle")
sys.held = open("held_by_sys.txt", "w")
sys.held.write("held by sys")
io.held = open("held_by_io.txt", "w")
io.held.write("held by io")


def local():
    inside = open("closure.txt", "w")
    inside.write("in a closure")
    return lambda: inside


closure = local()
default = lambda file=open("default.txt", "w"): file
default().write("a default argument")
print("done")
