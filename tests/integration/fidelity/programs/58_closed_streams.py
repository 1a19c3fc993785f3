# args: close
# args: descriptor
# args: none
# args: delete
# args: stderr
import os
import sys

print("first", flush=True)
if sys.argv[1] == "close":
    sys.stdout.close()
if sys.argv[1] == "descriptor":
    sys.stdout.write("written to a closed descriptor")
    os.close(1)
if sys.argv[1] == "none":
    sys.stdout = None
    print("vanishes")
if sys.argv[1] == "delete":
    del sys.stdout
    try:
        print("no stdout")
    except RuntimeError as error:
        print(error, file=sys.stderr)
if sys.argv[1] == "stderr":
    sys.stderr.close()
    sys.exit("cannot be shown")
