# args: stringio
# args: text
# args: tee
# args: failing
# args: reconfigured
import io
import sys


class Tee:
    def __init__(self, *streams):
        self.streams = streams

    def write(self, text):
        for stream in self.streams:
            stream.write(text)

    def flush(self):
        sys.__stderr__.write("tee flushed\n")
        for stream in self.streams:
            stream.flush()


class Failing(io.StringIO):
    def flush(self):
        raise OSError("cannot flush")


way = sys.argv[1]
if way == "stringio":
    sys.stdout = io.StringIO()
    print("caught")
    sys.__stdout__.write(repr(sys.stdout.getvalue()) + "\n")
if way == "text":
    sys.stdout = io.TextIOWrapper(open("out.txt", "wb"), encoding="utf-16")
    print("to a file ä")
if way == "tee":
    log = open("tee.txt", "w")
    sys.stdout = Tee(sys.__stdout__, log)
    print("to both")
if way == "failing":
    sys.stdout = Failing()
    print("kept")
if way == "reconfigured":
    sys.stdout.reconfigure(encoding="latin-1", errors="backslashreplace", newline="\r\n")
    print("ä €")
    print(sys.stdout.encoding, sys.stdout.errors)
