# args: path
# args: module
# args: package
# args: missing
# args: failing
import runpy
import sys

if sys.argv[1] == "path":
    names = runpy.run_path("script.py", {"given": 1}, run_name="as_name")
    print(sorted(name for name in names if not name.startswith("__")))
    runpy.run_path("script.py", run_name="__main__")
if sys.argv[1] == "module":
    runpy.run_module("script", run_name="__main__", alter_sys=True)
if sys.argv[1] == "package":
    runpy.run_module("pack", run_name="__main__")
if sys.argv[1] == "missing":
    runpy.run_module("no_such_module")
if sys.argv[1] == "failing":
    runpy.run_module("pack.failing", run_name="__main__")
