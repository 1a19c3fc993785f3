"""A spare: a forked interpreter that waits for a run and becomes it."""

from __future__ import annotations

import _socket
import gc
import os
import resource

import messages
import program
from codec import decode
from kernel import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, close_from, prctl

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from config import Config

EXEC_FAILED, NOT_FOUND = 126, 127
PAYLOAD_FD = 3


class Spare:
    """The guest's handle of one."""

    def __init__(self, pid: int, channel: _socket.socket, warm: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.warm = warm

    @classmethod
    def fork(cls, config: Config, *shut: _socket.socket) -> Spare:
        """Fork one from this process; ``shut`` are sockets that it must not keep."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                for sock in (ours, *shut):
                    sock.close()
                wait_for_run(config, theirs, frozenset())
            finally:
                os._exit(EXEC_FAILED)
        theirs.close()
        return cls(pid, ours, warm=False)

    def alive(self) -> bool:
        """Whether it still waits (it may have been killed by the out-of-memory killer)."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def end(self) -> None:
        """Kill and collect it."""
        self.channel.close()
        try:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def wait_for_run(config: Config, channel: _socket.socket, warm: frozenset[str]) -> None:
    """Block until a run arrives and become it; never returns.

    Args:
        config: The guest's.
        channel: To the guest; closed before any code of the session runs.
        warm: Top-level packages that are imported already; empty for a cold spare.
    """
    message, fds = messages.receive(channel)
    if not message:
        os._exit(0)
    stdout, stderr, stdin, payload = fds
    os.setsid()
    if not config.init:
        prctl(PR_SET_PDEATHSIG, 9)
    for fd, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
    kind, name, cwd, args, env, limits, fresh, code = decode(
        os.pread(payload, os.fstat(payload).st_size, 0)
    )
    arguments = [os.fsdecode(arg) for arg in decode(args)]
    environment = dict(item.split(b"=", 1) for item in decode(env))
    apply_limits(decode(limits))
    directory = os.fsdecode(cwd)
    try:
        os.chdir(directory)
    except OSError as error:
        fail(f"cannot enter directory {directory!r}: {error.strerror}", EXEC_FAILED)
    main = None
    if kind != b"exec":
        main = program.Program(config, kind, os.fsdecode(name), arguments, code)
        main.load()
        messages.send(channel, [b"imports", *main.imported_packages()])
    else:
        messages.send(channel, [b"imports"])
    prctl(PR_SET_DUMPABLE, 1)
    if main is None:
        close_from(3)
        execute(arguments, environment)
    elif fresh or main.needs_exec(warm):
        os.dup2(payload, PAYLOAD_FD)
        close_from(PAYLOAD_FD + 1)
        start_interpreter(config, main, environment)
    else:
        close_from(3)
        set_environment(environment)
        gc.enable()
        program.become_environment(config, bool(warm))
        main.run_forked(config, warm)


def set_environment(environment: dict[bytes, bytes]) -> None:
    """Make exactly these the variables of this process."""
    for name in list(os.environb):
        if name not in environment:
            del os.environb[name]
    os.environb.update(environment)


def apply_limits(limits: list[bytes]) -> None:
    """Set each rlimit, never above what is allowed now (getrlimit(2))."""
    for item in limits:
        name, _, value = item.decode().partition("=")
        which = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(which)[1]
        wanted = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
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
