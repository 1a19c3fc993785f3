import importlib
import sys

import alone
import pack.inner
from pack import VALUE, inner
from pack.sub import deep

print(alone.__name__, alone.__file__, alone.__spec__.origin, alone.__cached__)
print(VALUE, inner.where(), deep.RELATIVE, pack.__path__)
print(importlib.import_module(".inner", "pack") is inner)
with open("made_late.py", "w") as file:
    file.write("x = 1\n")
importlib.invalidate_caches()
import made_late

print(made_late.x)
with open("made_late.py", "w") as file:
    file.write("x = 22\n")
importlib.reload(made_late)
print(made_late.x, sorted(name for name in sys.modules if name.startswith(("pack", "alone"))))
import config
import program
import codec
import messages

print(config.MINE, program.MINE, codec.MINE, messages.MINE)
