"""Becomes the guest where the launcher cannot pass it a descriptor, as a file of its own number.

Arguments: ``stdin`` (the control socket is standard input) or the path of a socket to connect to;
the number that the socket is to have; then the guest's own argument vector.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """Take the control socket and become the guest."""
    control, number, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if control == "stdin":
        os.dup2(0, number)
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(control)
            if not connection.recv(16):  # until the worker has put us into a control group
                sys.exit("guest: the worker went away")
            os.dup2(connection.fileno(), number)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.execve(argv[0], argv, dict(os.environ))


main()
