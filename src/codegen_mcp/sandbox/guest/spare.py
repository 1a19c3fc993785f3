"""A spare: a forked interpreter that waits for a run and becomes it."""

from __future__ import annotations

import _socket
import gc
import marshal
import os
import resource
import select

import children
import messages
import program
import users
from kernel import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, close_from, give_way, pidfd_open, prctl
from rehearsal import rehearse

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from config import Config

EXEC_FAILED, NOT_FOUND = 126, 127
SETTLE_MS = 3
"""How long a spare leaves the processor to the answer of the run before it."""
PAYLOAD_FD = 3


class Spare:
    """The guest's handle of one."""

    def __init__(
        self, pid: int, entrance: _socket.socket, report: _socket.socket, warm: bool
    ) -> None:
        self.pid = pid
        self.entrance = entrance
        """The end for the worker, which sends the run."""
        self.report = report
        """Where it says what it imports, before any code of the session runs."""
        self.warm = warm
        self.number = 0

    @classmethod
    def fork(cls, config: Config, control: _socket.socket) -> Spare:
        """Fork one from this process."""
        entrance, run = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        report, reporter = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    children.forget()
                    control.close()
                    entrance.close()
                    report.close()
                    wait_for_run(config, run, reporter, frozenset())
                finally:
                    os._exit(EXEC_FAILED)
        except BaseException:
            entrance.close()
            report.close()
            raise
        finally:
            run.close()
            reporter.close()
        return cls(pid, entrance, report, warm=False)

    def watch(self) -> int:
        """Return a descriptor that is readable when it has ended."""
        return pidfd_open(self.pid)

    def imports(self) -> frozenset[str] | None:
        """Read what it imports as a run; None when it never became one. Closes the handle."""
        try:
            message = messages.receive_now(self.report) or []
        except (OSError, ValueError):
            message = []
        self.report.close()
        if message[:1] != [b"run"]:
            return None
        return frozenset(name.decode("utf-8", "replace") for name in message[1:])


def wait_for_run(
    config: Config, run: _socket.socket, reporter: _socket.socket, warm: frozenset[str]
) -> None:
    """Block until a run arrives and become it; never returns.

    Args:
        config: The guest's.
        run: From the worker; at its end there is nothing to do any more.
        reporter: To the guest. Both are closed before any code of the session runs.
        warm: Top-level packages that are imported already; empty for a cold spare.
    """
    if config.run_as is not None and not warm:
        users.become(*config.run_as)
    waiting = select.poll()
    waiting.register(run, select.POLLIN)
    if not waiting.poll(SETTLE_MS):
        rehearse(config)
    message, fds = messages.receive(run)
    if not message:
        os._exit(0)
    give_way(False)
    stdout, stderr, stdin = fds[:3]
    os.setsid()
    if not config.init:
        prctl(PR_SET_PDEATHSIG, 9)
    for fd, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
    payload = message[0] or os.pread(fds[3], os.fstat(fds[3]).st_size, 0)
    kind, name, cwd, args, environment, limits, fresh, code = marshal.loads(payload)
    arguments = [os.fsdecode(arg) for arg in args]
    apply_limits(limits)
    directory = os.fsdecode(cwd)
    try:
        os.chdir(directory)
    except OSError as error:
        fail(f"cannot enter directory {directory!r}: {error.strerror}", EXEC_FAILED)
    main = None
    names: list[bytes] = []
    if kind != b"exec":
        main = program.Program(config, kind, os.fsdecode(name), arguments, code)
        main.load()
        names = main.imported_packages()
    messages.send(reporter, [b"run", *names])
    prctl(PR_SET_DUMPABLE, 1)
    if main is None:
        close_from(3)
        execute(arguments, environment)
    elif fresh or main.needs_exec(warm):
        keep_payload(fds, payload)
        close_from(PAYLOAD_FD + 1)
        start_interpreter(config, main, environment)
    else:
        close_from(3)
        set_environment(environment)
        gc.enable()
        main.run_forked(config, warm)


def keep_payload(fds: list[int], payload: bytes) -> None:
    """Have the payload in a file on PAYLOAD_FD, where a new interpreter finds it."""
    fd = fds[3] if len(fds) > 3 else os.memfd_create("run")
    if len(fds) <= 3:
        os.write(fd, payload)
    os.dup2(fd, PAYLOAD_FD)


def set_environment(environment: dict[bytes, bytes]) -> None:
    """Make exactly these the variables of this process."""
    current = os.environb
    for name in list(current):
        if name not in environment:
            del current[name]
    for name, value in environment.items():
        if current.get(name) != value:
            current[name] = value


def apply_limits(limits: dict[str, int]) -> None:
    """Set each rlimit, never above what is allowed now (getrlimit(2))."""
    for name, value in limits.items():
        which = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(which)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (wanted, wanted))


def execute(argv: list[str], environment: dict[bytes, bytes]) -> None:
    """Replace this process by a program on the run's PATH, as a shell would (exit 126, 127)."""
    restore_signals()
    program = argv[0] if argv else ""
    path = os.fsdecode(environment.get(b"PATH", b"/usr/bin:/bin"))
    places = [program] if "/" in program else [f"{d or '.'}/{program}" for d in path.split(":")]
    problem: OSError | None = None
    for place in places if program else []:
        try:
            os.execve(place, argv, environment)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = problem or error
    if problem is None:
        fail(f"{program}: not found", NOT_FOUND)
    else:
        fail(f"{program}: {problem.strerror}", EXEC_FAILED)


def start_interpreter(
    config: Config, main: program.Program, environment: dict[bytes, bytes]
) -> None:
    """Replace this process by a new interpreter that runs the payload (``runner.py``)."""
    restore_signals()
    python = config.venv + "/bin/python"
    direct = main.direct_argv(python)
    if direct is not None:
        os.close(PAYLOAD_FD)
    where = [config.workspace, config.venv, config.site]
    argv = direct or [python, config.guest + "/runner.py", str(PAYLOAD_FD), *where]
    try:
        os.execve(python, argv, environment)
    except OSError as error:
        fail(f"{python}: {error.strerror}; the environment was damaged", NOT_FOUND)


def restore_signals() -> None:
    """Undo what an interpreter sets for itself, as subprocess does for its children."""
    import _signal

    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)


def fail(text: str, code: int) -> None:
    """Say on the run's stderr why it could not start, and end."""
    os.write(2, f"codegen: {text}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)
