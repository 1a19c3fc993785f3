"""System calls that a sandbox refuses, with their numbers, grouped by what they would reach.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux
(aarch64 uses the generic table). A call that an architecture does not have is None there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Number(NamedTuple):
    """One call's number on each architecture."""

    x86_64: int | None
    aarch64: int | None


OTHER_PROCESSES: Mapping[str, Number] = {
    "ptrace": Number(101, 117),
    "process_vm_readv": Number(310, 270),
    "process_vm_writev": Number(311, 271),
    "kcmp": Number(312, 272),
    "pidfd_getfd": Number(438, 438),
    "process_madvise": Number(440, 440),
    "process_mrelease": Number(448, 448),
    "migrate_pages": Number(256, 238),
    "move_pages": Number(279, 239),
}
"""Memory, descriptors and state of other processes."""

KERNEL_SURFACE: Mapping[str, Number] = {
    "bpf": Number(321, 280),
    "perf_event_open": Number(298, 241),
    "userfaultfd": Number(323, 282),
    "add_key": Number(248, 217),
    "request_key": Number(249, 218),
    "keyctl": Number(250, 219),
    "fanotify_init": Number(300, 262),
    "fanotify_mark": Number(301, 263),
    "lookup_dcookie": Number(212, 18),
    "vmsplice": Number(278, 75),
    "modify_ldt": Number(154, None),
    "remap_file_pages": Number(216, 234),
    "mbind": Number(237, 235),
    "set_mempolicy": Number(238, 237),
    "set_mempolicy_home_node": Number(450, 450),
    "uselib": Number(134, None),
    "ustat": Number(136, None),
    "sysfs": Number(139, None),
    "_sysctl": Number(156, None),
    "nfsservctl": Number(180, 42),
    "lsm_set_self_attr": Number(460, 460),
}
"""Large or rarely audited parts of the kernel that programs do not need."""

MOUNTS: Mapping[str, Number] = {
    "mount": Number(165, 40),
    "umount2": Number(166, 39),
    "pivot_root": Number(155, 41),
    "chroot": Number(161, 51),
    "open_tree": Number(428, 428),
    "move_mount": Number(429, 429),
    "fsopen": Number(430, 430),
    "fsconfig": Number(431, 431),
    "fsmount": Number(432, 432),
    "fspick": Number(433, 433),
    "mount_setattr": Number(442, 442),
    "open_tree_attr": Number(467, 467),
    "name_to_handle_at": Number(303, 264),
    "open_by_handle_at": Number(304, 265),
}
"""The view of the file system, and ways around it."""

NAMESPACES: Mapping[str, Number] = {
    "setns": Number(308, 268),
    "unshare": Number(272, 97),
}
"""``clone`` with a namespace flag is refused by its argument; ``clone3`` as a whole."""

ADMINISTRATION: Mapping[str, Number] = {
    "swapon": Number(167, 224),
    "swapoff": Number(168, 225),
    "reboot": Number(169, 142),
    "kexec_load": Number(246, 104),
    "kexec_file_load": Number(320, 294),
    "init_module": Number(175, 105),
    "finit_module": Number(313, 273),
    "delete_module": Number(176, 106),
    "acct": Number(163, 89),
    "quotactl": Number(179, 60),
    "quotactl_fd": Number(443, 443),
    "file_setattr": Number(469, 469),
    "syslog": Number(103, 116),
    "settimeofday": Number(164, 170),
    "clock_settime": Number(227, 112),
    "adjtimex": Number(159, 171),
    "clock_adjtime": Number(305, 266),
    "sethostname": Number(170, 161),
    "setdomainname": Number(171, 162),
    "vhangup": Number(153, 58),
    "iopl": Number(172, None),
    "ioperm": Number(173, None),
}
"""The machine as a whole."""

REFUSED: Mapping[str, Number] = {
    **OTHER_PROCESSES,
    **KERNEL_SURFACE,
    **MOUNTS,
    **NAMESPACES,
    **ADMINISTRATION,
}
"""Answered with EPERM."""

ABSENT: Mapping[str, Number] = {
    "io_uring_setup": Number(425, 425),
    "io_uring_enter": Number(426, 426),
    "io_uring_register": Number(427, 427),
    "clone3": Number(435, 435),
    "memfd_secret": Number(447, 447),
    "statmount": Number(457, 457),
    "listmount": Number(458, 458),
}
"""Answered with ENOSYS: libraries then take the older way (clone3 keeps its flags behind a
pointer, which no filter can read)."""

SHARED_IPC: Mapping[str, Number] = {
    "shmget": Number(29, 194),
    "shmat": Number(30, 196),
    "shmctl": Number(31, 195),
    "shmdt": Number(67, 197),
    "semget": Number(64, 190),
    "semop": Number(65, 193),
    "semctl": Number(66, 191),
    "semtimedop": Number(220, 192),
    "msgget": Number(68, 186),
    "msgsnd": Number(69, 189),
    "msgrcv": Number(70, 188),
    "msgctl": Number(71, 187),
    "mq_open": Number(240, 180),
    "mq_unlink": Number(241, 181),
}
"""Refused where there is no IPC namespace: these objects would be the host's."""

CLONE = Number(56, 220)
IOCTL = Number(16, 29)
PERSONALITY = Number(135, 92)
PRLIMIT64 = Number(302, 261)
SOCKET = Number(41, 198)
SOCKETPAIR = Number(53, 199)

NEWEST = 469
"""file_setattr of Linux 6.17: calls made after this table was written are answered ENOSYS."""

X32_BIT = 0x40000000
"""Set in the number of a call of the x32 ABI (asm/unistd.h)."""

AUDIT_ARCH: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""linux/audit.h."""

CLONE_NAMESPACES = 0x7E020000
"""NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET (linux/sched.h)."""

TERMINAL_REQUESTS: Mapping[str, int] = {
    "TIOCSTI": 0x5412,
    "TIOCLINUX": 0x541C,
    "TIOCCONS": 0x541D,
    "TIOCSETD": 0x5423,
}
"""Input injection, console control, and line disciplines (each a module that loads on demand)."""

ATTRIBUTE_REQUESTS: Mapping[str, int] = {
    "FS_IOC_SETFLAGS": 0x40086602,
    "FS_IOC_FSSETXATTR": 0x401C5820,
}
"""A file's owner may leave its project, and so its quota, by these (as by file_setattr) where there
is no user namespace (kernel fs/ioctl.c, fileattr_set_prepare)."""

PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, Linux32, their UNAME26 forms, and the question for the present one."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
