import os
import subprocess
import sys

os.environ["ADDED"] = "by the parent"
del os.environ["HOME"]
os.putenv("UNSEEN", "only for children")
names = subprocess.check_output(["env"], text=True).splitlines()
print(sorted(names))
code = "import os; print(sorted(os.environ))"
print(subprocess.check_output([sys.executable, "-c", code], text=True, env={"ONLY": "this"}))
