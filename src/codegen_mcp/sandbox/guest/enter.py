"""Becomes the guest where the launcher cannot pass it a descriptor, as a file of its own number.

Arguments: ``stdin`` (the control socket is standard input) or the path of a socket to connect to;
the number that the socket is to have; then the guest's own argument vector.
"""

from __future__ import annotations

import os
import socket
import sys


def confine(program: bytes) -> None:
    """Install a filter, which every program inside inherits (seccomp(2))."""
    if not program:
        return
    import ctypes
    import struct

    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(header, len(header))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for words in ((38, 1, 0), (22, 2, ctypes.addressof(buffer))):
        if prctl(*[ctypes.c_ulong(word) for word in (*words, 0, 0)]) < 0:
            sys.exit(f"guest: no system call filter: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Take the control socket and become the guest."""
    control, number, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if control == "stdin":
        os.dup2(0, number)
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(control)
            # Until the worker has put us into a control group; a system call filter comes along.
            message = connection.recv(65536)
            if not message:
                sys.exit("guest: the worker went away")
            os.dup2(connection.fileno(), number)
            confine(message[1:])
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.execve(argv[0], argv, dict(os.environ))


main()
