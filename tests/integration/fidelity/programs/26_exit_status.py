# args: None
# args: 0
# args: 3
# args: 255
# args: 256
# args: 257
# args: -1
# args: -300
# args: 2**31
# args: 2**63-1
# args: True
# args: "text"
# args: "äöü"
# args: ""
# args: b"bytes"
# args: 1.5
# args: ()
# args: (1,)
# args: (1,2)
# args: [1,2]
# args: Thing()
# args: Number(4)
import sys


class Thing:
    def __str__(self):
        return "a thing"


class Number(int):
    def __str__(self):
        return "a number"


print("to stdout")
print("to stderr", file=sys.stderr)
try:
    sys.exit(eval(sys.argv[1]))
finally:
    print("finally")
