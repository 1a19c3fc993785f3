"""An internet for tests: two network namespaces with addresses that look public, and are nobody's.

The near one stands for the worker's host, the far one for everything else: web servers on public
addresses, and traps on those that must never be reached (loopback, private, metadata). Sockets are
made in a namespace by a thread that lives in it; whoever has them can use them from anywhere
(network_namespaces(7)). Needs root.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_NEAR = ("198.51.99.1", "2607:f0d0:99::1")
_FAR = ("198.51.99.2", "2607:f0d0:99::2")
PUBLIC = "93.184.216.34"
OTHER = "93.184.216.35"
PUBLIC6 = "2606:2800:220:1::10"
NEAR = _NEAR[0]
"""The near side's own address: the worker's host."""
PRIVATE = "10.1.2.3"
FORBIDDEN = (
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    PRIVATE,
    "192.168.7.7",
    "172.16.9.9",
    "fd00:ec2::254",
    "fd12:3456::1",
)
"""Addresses of the far side that no rule lets through."""


def why_not() -> str:
    """Say why there cannot be one here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if subprocess.run(["which", "ip"], capture_output=True).returncode:
        return "ip is not installed (apt-get install iproute2)"
    return ""


class Namespace:
    """One network namespace and the thread that lives in it."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"net-{name}")
        self.thread = self.run(self._enter)

    def run(self, work: Callable[[], T]) -> T:
        """Do something quick in it."""
        return self._pool.submit(work).result()

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """Make a socket of it."""
        return self.run(lambda: socket.socket(family, kind))

    def ip(self, *commands: str) -> None:
        """Configure it by commands of iproute2."""
        for command in commands:
            self.run(lambda c=command: subprocess.run(["ip", *c.split()], check=True))  # type: ignore[misc]

    def listener(self, address: str, port: int) -> socket.socket:
        """Make a listening socket in it."""
        sock = self.make_socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections have it, too
        sock.bind((address, port))
        sock.listen(64)
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """End the thread; the namespace goes with its last socket."""
        self._pool.shutdown()

    @staticmethod
    def _enter() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace")
        return threading.get_native_id()


class OuterNetwork:
    """Both namespaces, joined."""

    def __init__(self) -> None:
        self.near, self.far = Namespace("near"), Namespace("far")
        self.near.ip(
            "link set lo up",
            f"link add near type veth peer name far netns {self.far.thread}",
            f"addr add {_NEAR[0]}/24 dev near",
            f"addr add {_NEAR[1]}/64 dev near nodad",
            "link set near up",
        )
        self.far.ip(
            "link set lo up",
            f"addr add {_FAR[0]}/24 dev far",
            f"addr add {_FAR[1]}/64 dev far nodad",
            "link set far up",
            *(f"addr add {one} dev lo" for one in _hosts((PUBLIC, OTHER, PUBLIC6, *FORBIDDEN))),
        )
        self.near.ip(f"route add default via {_FAR[0]}", f"-6 route add default via {_FAR[1]}")

    def close(self) -> None:
        """Let both go."""
        self.near.close()
        self.far.close()


def _hosts(addresses: Sequence[str]) -> Iterator[str]:
    for address in addresses:
        yield f"{address}/128 nodad" if ":" in address else f"{address}/32"


@contextmanager
def outer_network() -> Iterator[OuterNetwork]:
    """Open one."""
    network = OuterNetwork()
    try:
        yield network
    finally:
        network.close()
