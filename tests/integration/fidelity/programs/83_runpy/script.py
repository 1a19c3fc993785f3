import sys

given = globals().get("given")
print(__name__, __file__, given, sys.argv, __spec__ and __spec__.name)
