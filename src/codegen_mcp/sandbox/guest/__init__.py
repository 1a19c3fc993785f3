"""The program inside a sandbox: standard library only, imports nothing of this package.

Its files are copied to the state directory and mounted read-only; they import each other as top
level modules. The worker imports ``codec`` alone.
"""
