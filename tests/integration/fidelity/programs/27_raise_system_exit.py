# args: class
# args: instance
# args: nested
# args: subclass
# args: from
# args: attribute
# args: quit
# args: import
import sys


class Leave(SystemExit):
    def __init__(self):
        super().__init__("not used")
        self.code = 12


def deep(n):
    if n:
        deep(n - 1)
    raise SystemExit(11)


way = sys.argv[1]
if way == "class":
    raise SystemExit
if way == "instance":
    raise SystemExit(4)
if way == "nested":
    deep(50)
if way == "subclass":
    raise Leave
if way == "from":
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise SystemExit("with a cause") from error
if way == "attribute":
    error = SystemExit(1)
    error.code = 13
    raise error
if way == "quit":
    quit(14)
if way == "import":
    import leaves
