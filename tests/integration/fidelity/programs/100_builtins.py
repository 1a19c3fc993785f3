import builtins
import sys

print(sorted(dir(builtins)))
for name in ("exit", "quit", "copyright", "credits", "license", "help"):
    print(name, repr(getattr(builtins, name))[:200])
print(open, input, print, __import__, __build_class__)
print(sys.displayhook, sys.excepthook, sys.unraisablehook, sys.breakpointhook)
print(sorted(name for name in dir(sys)))
print(sys.flags.interactive, hasattr(sys, "ps1"), sys.is_finalizing(), sys.exc_info())
print(sys.getallocatedblocks() > 0, sys.intern("a"), sys.float_repr_style, sys.implementation)
exit(3)
