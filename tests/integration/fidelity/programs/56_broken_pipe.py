# args: stdout
# args: write
# args: child
import os
import subprocess
import sys

reader, writer = os.pipe()
os.close(reader)
if sys.argv[1] == "write":
    try:
        os.write(writer, b"x")
    except BrokenPipeError as error:
        print("error", error)
if sys.argv[1] == "stdout":
    os.dup2(writer, 1)
    sys.stdout.write("lost, with no newline")
if sys.argv[1] == "child":
    done = subprocess.run(["/bin/sh", "-c", "kill -PIPE $$; echo survived"], stdout=subprocess.PIPE)
    print(done)
