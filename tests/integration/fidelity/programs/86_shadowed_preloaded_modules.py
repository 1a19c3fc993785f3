import io
import os
import resource
import select
import stat
import _socket
import gc
import linecache
import traceback

print(os.__file__, stat.__file__, io.__file__)
for module in (resource, select, linecache, traceback):
    print(module.__name__, getattr(module, "MARK", "the real one"))
