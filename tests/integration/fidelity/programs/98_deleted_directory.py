import os
import subprocess
import sys

os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
try:
    os.getcwd()
except FileNotFoundError as error:
    print(error, flush=True)
print(subprocess.run([sys.executable, "-c", "print('child runs')"], cwd="/").returncode)
import json

print(json.dumps({"still": "imports"}))
open("file.txt", "w")
