import os

CONSTANT = "still here"


class Needs:
    def __del__(self):
        print("os" in globals(), CONSTANT, os is None, __name__, print is not None, flush=True)


_first = Needs()
later = Needs()
