# args: cause
# args: context
# args: none
# args: lambda
# args: long
# args: recursion
import sys


class Failure(Exception):
    pass


def lookup():
    return {}["missing"]


def long(n):
    if n == 0:
        raise Failure("deep")
    long(n - 1)


if sys.argv[1] == "cause":
    try:
        lookup()
    except KeyError as error:
        raise Failure("because", 3) from error
if sys.argv[1] == "context":
    try:
        lookup()
    except KeyError:
        undefined_name + 1
if sys.argv[1] == "none":
    try:
        lookup()
    except KeyError:
        raise Failure from None
if sys.argv[1] == "lambda":
    (lambda x: x.absent)(object)
if sys.argv[1] == "long":
    long(20)
if sys.argv[1] == "recursion":

    def endless(n):
        return endless(n + 1) + 1

    endless(0)
