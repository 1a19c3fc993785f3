"""Runs inside a session: codegen-mcp run examples/hello.py [names]."""

import platform
import sys

for name in sys.argv[1:] or ["world"]:
    print(f"hello {name}, from Python {platform.python_version()} in a sandbox")
