def f():
    raise KeyError("in a module")


f()
