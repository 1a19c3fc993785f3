"""Attacks on the network's wall, and on sockets of the host."""

from __future__ import annotations

from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.selftest.attack import Attack

_SHARED = (IsolationLevel.PROCESS_HARDENED.value,)

NETWORK = (
    Attack(
        name="connect to a service on the host's loopback",
        wall="network",
        source="https://man7.org/linux/man-pages/man7/network_namespaces.7.html",
        quick=True,
        code="""
def connect(family, *address):
    with socket.socket(family) as s:
        s.settimeout(2)
        s.connect(address)
        return "connected"


refused(
    v4=lambda: connect(socket.AF_INET, "127.0.0.1", HOST["port"]),
    v6=lambda: connect(socket.AF_INET6, "::1", HOST["port"]),
    any=lambda: connect(socket.AF_INET, "0.0.0.0", HOST["port"]),
)
""",
    ),
    Attack(
        name="reach the cloud's metadata service and the internet",
        wall="network",
        source="https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html",
        quick=True,
        code="""
def connect(host, port):
    with socket.create_connection((host, port), 2):
        return "connected"


refused(
    metadata=lambda: connect("169.254.169.254", 80),
    internet=lambda: connect("1.1.1.1", 443),
    ipv6=lambda: connect("2606:4700:4700::1111", 443),
)
""",
    ),
    Attack(
        name="resolve a name",
        wall="network",
        source="https://attack.mitre.org/techniques/T1071/004/ (DNS tunnelling)",
        code="""
start = time.monotonic()
error, got = attempt(lambda: socket.gethostbyname("example.com"))
if not error:
    broken(got)
slow = time.monotonic() - start
held(error) if slow < 2 else broken("took", slow)
""",
    ),
    Attack(
        name="list the host's interfaces and connections",
        wall="network",
        source="https://man7.org/linux/man-pages/man5/proc_pid_net.5.html",
        code="""
error, names = attempt(lambda: [name for _, name in socket.if_nameindex()])
error, more = attempt(
    lambda: [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
)
names = sorted({*(names or ()), *(more or ())})
error, tcp = attempt(lambda: open("/proc/net/tcp").read())
if f":{HOST['port']:04X}" in (tcp or ""):
    broken("the host's listening port is in /proc/net/tcp")
held(names) if names in (["lo"], []) else broken(names)
""",
    ),
    Attack(
        name="connect to an abstract Unix socket of the host",
        wall="network",
        gaps={"no-scopes": "Landlock covers abstract sockets from version 6 on"},
        source="CVE-2020-15257 https://nvd.nist.gov/vuln/detail/CVE-2020-15257 (containerd-shim)",
        quick=True,
        code="""
def connect(kind):
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.connect("\\0" + HOST["marker"])
        return "connected"


refused(stream=lambda: connect(socket.SOCK_STREAM))
""",
    ),
    Attack(
        name="connect to a Unix socket of the host by its path",
        wall="network",
        source="https://docs.kernel.org/userspace-api/landlock.html (current limitations)",
        gaps=dict.fromkeys(_SHARED, "connecting by path is not covered before Landlock 9"),
        code="""
def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        return "connected"


refused(
    decoy=lambda: connect(HOST["socket"]),
    docker=lambda: connect("/var/run/docker.sock"),
    containerd=lambda: connect("/run/containerd/containerd.sock"),
    dbus=lambda: connect("/run/dbus/system_bus_socket"),
)
""",
    ),
    Attack(
        name="open sockets of families with a bad record",
        wall="syscalls",
        source="CVE-2021-26708 (vsock), CVE-2017-7308 (packet), CVE-2016-10229, CVE-2022-27666",
        quick=True,
        code="""
def make(family, kind=socket.SOCK_RAW, protocol=0):
    socket.socket(family, kind, protocol).close()
    return "made"


refused(
    vsock=lambda: make(40, socket.SOCK_STREAM),
    packet=lambda: make(17),
    alg=lambda: make(38, socket.SOCK_SEQPACKET),
    icmp=lambda: make(2, socket.SOCK_RAW, 1),
    key=lambda: make(15, socket.SOCK_RAW, 2),
    netfilter=lambda: make(16, 3, 12),
    audit=lambda: make(16, 3, 9),
    generic=lambda: make(16, 3, 16),
    xdp=lambda: make(44),
    can=lambda: make(29, 3, 1),
    tipc=lambda: make(30, 5),
    bluetooth=lambda: make(31, 3, 1),
    pair=lambda: socket.socketpair(30, socket.SOCK_STREAM),
)
""",
    ),
    Attack(
        name="configure the network",
        wall="network",
        source="https://man7.org/linux/man-pages/man7/netdevice.7.html",
        code="""
def raw_netlink():
    with socket.socket(16, 3, 0) as s:
        s.settimeout(2)
        body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + struct.pack("HH4s", 8, 3, b"dum0")
        s.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        answer = s.recv(4096)
        code = struct.unpack_from("i", answer, 16)[0]
        if code:
            raise OSError(-code, "netlink")
        return "made"


def down():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0))


refused(link=raw_netlink, down=down)
""",
    ),
    Attack(
        name="program the packet filter from a new user namespace",
        wall="syscalls",
        source="CVE-2024-1086 https://github.com/Notselwyn/CVE-2024-1086",
        code="""
refused(
    namespace=lambda: child_call("unshare", 0x50000000),
    netfilter=lambda: socket.socket(16, 3, 12).close(),
    xtables=lambda: socket.socket(2, 3, 255).close(),
)
""",
    ),
    Attack(
        name="slip past socket rules with multipath TCP",
        wall="network",
        source="https://docs.kernel.org/userspace-api/landlock.html (TCP only)",
        code="""
def connect(protocol, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind, protocol) as s:
        s.settimeout(2)
        s.connect(("127.0.0.1", HOST["port"]))
        s.send(b"x")
        return "connected"


refused(
    mptcp=lambda: connect(262),
    sctp=lambda: connect(132),
    smc=lambda: socket.socket(43, socket.SOCK_STREAM, 0).close() or "made",
)
""",
    ),
    Attack(
        name="find the way out that was not given",
        wall="network",
        source="https://www.rfc-editor.org/rfc/rfc9110#name-connect",
        code="""
def connect(address):
    with socket.socket() as s:
        s.settimeout(5)
        s.connect(address)
        return "connected"


refused(egress=lambda: connect(("127.0.0.1", 3128)))
""",
    ),
)
