# stdin: where\nargs\np value\nnext\ncontinue\n
"""
>>> double(2)
4
>>> double(3)
7
"""
import doctest
import pdb


def double(value):
    pdb.set_trace()
    result = value * 2
    return result


double(21)
pdb.set_trace = lambda: None
print(doctest.testmod())
