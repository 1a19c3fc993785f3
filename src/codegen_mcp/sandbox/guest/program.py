"""A Python program in this process: made ``__main__``, run, and ended as an interpreter ends."""

from __future__ import annotations

import io
import os
import sys

import finish
import frames
import uncaught

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from config import Config

CODE_NAME = "-c"


class Program:
    """Source text or a file of the workspace."""

    def __init__(
        self, config: Config, kind: bytes, name: str, arguments: list[str], code: bytes
    ) -> None:
        self.is_file = kind == b"file"
        self.name = name
        self.arguments = arguments
        self.source = code
        self.site_packages = config.site_packages
        absolute = self.is_file and sys.version_info >= (3, 9)
        self.path = os.path.join(os.getcwd(), name) if absolute else name
        """What tracebacks show."""
        self.code: object = None
        self.error: BaseException | None = None
        self.warnings = ""
        """What the compiler printed."""
        self.process = os.getpid()
        self.entries: list[str] = []
        """What lies in site-packages, once that was read."""

    def is_main(self) -> bool:
        """Whether this is the process that began it, not a fork of the program's own."""
        return os.getpid() == self.process

    @property
    def directory(self) -> str:
        """sys.path[0]: the directory of a file (links resolved), else the current one."""
        return os.path.dirname(os.path.realpath(self.path)) if self.is_file else ""

    def load(self) -> None:
        """Read and compile; what is to be said of that is kept until the program starts."""
        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            if self.is_file:
                with open(self.path, "rb") as file:
                    self.source = file.read()
            if self.direct_argv("") is None:
                self.code = compile(self.source, self.path, "exec", dont_inherit=True)
        except BaseException as error:
            self.error = error.with_traceback(None)
        self.warnings = sys.stderr.getvalue()
        sys.stderr = stderr

    def direct_argv(self, python: str) -> list[str] | None:
        """Arguments that leave all to the interpreter: for a zip, a directory or bytecode.

        Also for a file that cannot be read or compiled: nobody else words its errors so well.
        """
        special = self.is_file and (
            self.error is not None
            or self.path.endswith(".pyc")
            or os.path.isdir(self.path)
            or self.source[:2] == b"PK"
        )
        return [python, self.name, *self.arguments] if special else None

    def imported_packages(self) -> list[bytes]:
        """Names in the code that are packages of the session's environment."""
        self.entries = list_packages(self.site_packages)
        if not self.entries:
            return []
        installed = {entry.partition(".")[0] for entry in self.entries}
        found: set[str] = set()
        todo = [self.code] if self.code is not None and installed else []
        while todo:
            code = todo.pop()
            found.update(name.partition(".")[0] for name in code.co_names)  # type: ignore[attr-defined]
            todo += [c for c in code.co_consts if type(c) is type(code)]  # type: ignore[attr-defined]
        return sorted(name.encode() for name in found & installed)

    def needs_exec(self, warm: frozenset[str]) -> bool:
        """Whether what is imported already could hide a module beside the program."""
        if self.direct_argv("") is not None:
            return True
        if not warm:
            return False
        try:
            beside = {entry.partition(".")[0] for entry in os.listdir(self.directory or ".")}
        except OSError:
            return True
        return not beside.isdisjoint(warm)

    def run_forked(self, config: Config, warm: frozenset[str]) -> None:
        """Run in a forked interpreter; never returns."""
        if warm:
            reseed()
        else:
            add_packages(config, self.entries)
        import_signals()
        self.run(config.venv + "/bin/python")

    def run(self, executable: str) -> None:
        """Run as ``__main__`` and end the process as the interpreter would."""
        shown = self.name if self.is_file else CODE_NAME
        sys.argv[:] = [shown, *self.arguments]
        if hasattr(sys, "orig_argv"):
            head = [self.name] if self.is_file else [CODE_NAME, os.fsdecode(self.source)]
            sys.orig_argv[:] = [executable, *head, *self.arguments]
        sys.path.insert(0, self.directory)
        if sys.stdout is None or sys.stdout.name != "<stdout>" or not sys.stdout.line_buffering:
            open_streams()
        main = type(sys)("__main__")
        names = main.__dict__
        if sys.version_info < (3, 14):
            names["__annotations__"] = {}
        names["__builtins__"] = sys.modules["builtins"]
        if self.is_file:
            from _frozen_importlib_external import SourceFileLoader  # type: ignore[import-not-found]

            names["__loader__"] = SourceFileLoader("__main__", self.path)
            names["__file__"] = self.path
            names["__cached__"] = None
        else:
            from _frozen_importlib import BuiltinImporter  # type: ignore[import-not-found]

            names["__loader__"] = BuiltinImporter
            remember_source(self.path, self.source)
        sys.modules["__main__"] = main
        before = set(sys.modules)
        status = 0
        if self.warnings:
            uncaught.print_error(self.warnings)
        caught = self.error
        try:
            if caught is None:
                frames.call(exec, self.code, names)
        except BaseException as error:
            caught = error
        del main, names
        finish.flush_replaced()
        if caught is not None:
            status, self.error = uncaught.report(caught, self), None
            caught = None
        finish.end(status, before)


_listed: tuple[object, list[str]] = (None, [])
"""What site-packages looked like when it was listed last, and what was in it."""


def list_packages(directory: str) -> list[str]:
    """Return what lies in site-packages; nothing when it cannot be read.

    A spare lists it while it waits; a run then only asks whether it is still the same (the time of
    change, which no program can set: inode(7)).
    """
    global _listed
    try:
        now = os.stat(directory)
        state = (now.st_dev, now.st_ino, now.st_ctime_ns, now.st_mtime_ns)
        if _listed[0] != state:
            _listed = state, os.listdir(directory)
    except OSError:
        return []
    return _listed[1]


def forget_guest(config: Config) -> None:
    """Take out what the guest imported, so that a program finds a bare interpreter."""
    for name in [name for name in sys.modules if name not in config.modules]:
        del sys.modules[name]


def become_environment(config: Config) -> None:
    """Be the interpreter of the session's environment instead of the template's (site)."""
    import site

    template, venv = config.template, config.venv
    sys.executable = venv + "/bin/python"
    if getattr(sys, "_base_executable", "").startswith(template + "/"):  # until Python 3.10
        sys._base_executable = sys.executable  # type: ignore[attr-defined]
    sys.prefix = sys.exec_prefix = venv
    site.PREFIXES[:] = [venv if prefix == template else prefix for prefix in site.PREFIXES]
    gone = (config.guest, template)
    sys.path[:] = [p for p in sys.path if p != gone[0] and not p.startswith(template + "/")]
    for place in [p for p in sys.path_importer_cache if p.startswith(gone)]:
        del sys.path_importer_cache[place]
    sys.modules.pop("sysconfig", None)


def add_packages(config: Config, entries: list[str]) -> None:
    """Add the session's site-packages; .pth files, which run code, are for site to read."""
    if any(entry.endswith(".pth") for entry in entries):
        import site

        site.addsitepackages(set(sys.path), [config.venv])
    else:
        sys.path.append(config.site_packages)


def open_streams() -> None:
    """Make sys.stdin, stdout and stderr anew over descriptors 0 to 2, as at a start.

    Line buffered, so that what was printed is out before a run may be killed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        old = getattr(sys, "__" + name + "__")
        raw = io.FileIO(number, mode + "b", closefd=False)
        raw.name = f"<{name}>"
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        text = io.TextIOWrapper(
            buffer,
            encoding=old.encoding if old is not None else "utf-8",
            errors=old.errors if old is not None else "strict",
            newline="\n",
            line_buffering=mode == "w",
        )
        text.mode = mode  # type: ignore[misc]  # as the interpreter sets it
        setattr(sys, name, text)
        setattr(sys, "__" + name + "__", text)


def import_signals() -> None:
    """Give SIGINT back the handler that every interpreter starts with."""
    import _signal

    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def reseed() -> None:
    """Give a fork of the warm parent randomness of its own where the library does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def remember_source(name: str, source: bytes) -> None:
    """Let tracebacks and inspect show the lines of source text that is in no file."""
    linecache = sys.modules.get("linecache")
    if linecache is not None:
        text = source.decode("utf-8", "replace")
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
