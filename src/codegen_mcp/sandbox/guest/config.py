"""What the guest was told at its start."""

from __future__ import annotations

import os
import sys


class Config:
    """Parsed arguments, and facts of the interpreter before any session code ran."""

    def __init__(self, argv: list[str], bare: frozenset[str]) -> None:
        self.guest = os.path.dirname(argv[0])
        self.control_fd = int(argv[1])
        self.workspace, self.venv, self.site = argv[2:5]
        flags = argv[5:]
        self.environment: list[str] = []
        """What most runs will have, as ``K=V``: a spare that has it need not set it."""
        if "--env" in flags:
            at = flags.index("--env")
            self.environment, flags = flags[at + 1 :], flags[:at]
        self.init = "--init" in flags
        self.own_uid = "--own-uid" in flags
        self.proc = "--no-proc" not in flags
        self.run_as: tuple[int, int] | None = None
        """User of the session's code, and what it calls itself; None is the guest's own."""
        self.guest_uid = -1
        """What the guest has to become first."""
        if "--run-as" in flags:
            uid, called, own = map(int, flags[flags.index("--run-as") + 1].split(":"))
            self.run_as, self.guest_uid = (uid, called), own
        self.relay = "--relay" in flags
        """The worker cannot be sent descriptors: runs come over the control socket."""
        self.warm_kib = int(flags[flags.index("--warm-mib") + 1]) * 1024 if self.init else 0
        self.warm_failed = False
        self.egress_port = int(flags[flags.index("--egress") + 1]) if "--egress" in flags else 0
        """Where code finds the way out; 0: there is none."""
        self.template = sys.prefix
        self.modules = bare
        """Of a bare interpreter; all others are the guest's and go before code runs."""

    @property
    def may_warm(self) -> bool:
        """Whether a warm parent is worth trying."""
        return self.warm_kib > 0 and not self.warm_failed

    @property
    def site_packages(self) -> str:
        """Directory of the session's packages."""
        return self.venv + "/" + self.site
