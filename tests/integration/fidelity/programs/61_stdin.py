# stdin: first line\nsecond \xc3\xa4\r\nthird without end
# args: all
# args: lines
# args: input
# args: bytes
# args: mixed
# args: fileinput
# args: os
# args: bad
import os
import sys

way = sys.argv[1]
if way == "all":
    print(ascii(sys.stdin.read()))
if way == "lines":
    for line in sys.stdin:
        print(ascii(line))
if way == "input":
    while True:
        print(ascii(input("prompt> ")))
if way == "bytes":
    print(sys.stdin.buffer.read())
if way == "mixed":
    print(ascii(sys.stdin.readline()), ascii(input()), sys.stdin.read(3), sys.stdin.readlines())
if way == "fileinput":
    import fileinput

    sys.argv[1:] = ["-"]
    for line in fileinput.input():
        print(fileinput.lineno(), ascii(line))
if way == "os":
    print(os.read(0, 5), os.read(0, 100), os.read(0, 100))
if way == "bad":
    sys.stdin.reconfigure(encoding="ascii", errors="strict")
    sys.stdin.read()
