# args: stdout
# args: stderr
# args: error
import sys

text = "lone \udc80 surrogate"
if sys.argv[1] == "stdout":
    print("before")
    print(text)
if sys.argv[1] == "stderr":
    print(text, file=sys.stderr)
if sys.argv[1] == "error":
    raise ValueError(text)
