import os
import sys

print("before", flush=True)
os.environ["PASSED"] = "yes"
os.execv(sys.executable, ["python", "-c", "import os, sys; print(os.environ['PASSED'], sys.argv)", "x"])
