def f():
    return 1


def g():
    nonlocal nothing


print(f())
