# args: read
# args: input
# args: help
import sys

if sys.argv[1] == "read":
    print(repr(sys.stdin.read()), sys.stdin.readline(), sys.stdin.isatty())
if sys.argv[1] == "input":
    input("name? ")
if sys.argv[1] == "help":
    help("notalwaysthere")
    help(len)
