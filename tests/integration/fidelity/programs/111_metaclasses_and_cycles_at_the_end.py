import sys


class Meta(type):
    def __del__(cls):
        print("class deleted", cls.__name__, flush=True)


class A(metaclass=Meta):
    def __del__(self):
        print("instance deleted", type(self).__name__, sys.is_finalizing(), flush=True)


class B(A):
    pass


a, b = A(), B()
a.other, b.other = b, a
try:
    raise ValueError
except ValueError as error:
    kept = error


def importer():
    class Late:
        def __del__(self):
            try:
                import json

                print("could import", flush=True)
            except ImportError as error:
                print(error, flush=True)

    return Late()


late = importer()
print("end", flush=True)
