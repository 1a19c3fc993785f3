from . import VALUE

print("package main", VALUE, __package__)
