import sys

a_name = 1

print(sorted(globals()))
print(__name__, __file__, __spec__, __package__, __doc__, __cached__)
print(type(__loader__), __loader__.name, __loader__.path)
print(type(__builtins__), __builtins__ is sys.modules["builtins"])
print(__annotations__)
annotated: int = 3
print(__annotations__)
print(sys.modules["__main__"].__dict__ is globals())
print(sys.modules["__main__"])
if __name__ == "__main__":
    print("main")
