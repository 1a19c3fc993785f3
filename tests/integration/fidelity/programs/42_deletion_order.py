class Noisy:
    def __init__(self, name):
        self.name = name

    def __del__(self):
        print("deleted", self.name, flush=True)


first = Noisy("first")
second = Noisy("second")
_private = Noisy("private")
__dunder = Noisy("dunder")
third = Noisy("third")
pair = [Noisy("in a list 0"), Noisy("in a list 1")]
first = None


def function():
    return Noisy("in a function")


class Klass:
    attribute = Noisy("class attribute")


cycle = Noisy("cycle")
cycle.me = cycle
alias = third
print("end", flush=True)
