import sys

for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(type(stream), stream.name, stream.mode, stream.encoding, stream.errors)
    print(stream.newlines, stream.isatty(), stream.fileno(), stream.readable(), stream.writable())
    print(type(stream.buffer), stream.buffer.name, stream.buffer.mode, stream.buffer.raw)
    print(stream.write_through, stream.closed, stream.seekable() if stream is sys.stdin else "")
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
print(repr(sys.stdin), repr(sys.stdout), repr(sys.stderr))
print(sys.stderr.line_buffering)
