"""Run tests in a virtual machine with a stock Debian kernel: cgroup v2 alone, and project quotas.

``./dev test --vm [pytest arguments]``. QEMU emulates the processor, so that nothing but its package
is needed: no KVM, no root, no network. The guest sees this machine's programs and the checkout
read-only over 9p; its kernel is the distribution's package, unpacked below .tools and never
installed. Nothing of it outlives this process; the console's text is kept when tests fail.
"""

from __future__ import annotations

import argparse
import lzma
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".tools" / "vm"
CONSOLE = CACHE / "console.log"
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
TOOLS = ("qemu-system-x86_64", "busybox", "mkfs.ext4", "mkfs.xfs", "dpkg-deb", "apt-get")
KERNEL = "linux-image-amd64"
"""The stock kernel: the one for clouds has no 9p."""
MODULES = (
    *("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "crc32c_generic", "ext4", "xfs"),
    *("quota_v2", "overlay", "loop"),
)
MEMORY_MIB = 2048
DISK_BYTES = 640 * 2**20
TESTS = ("tests/vm",)
PYTEST = (
    *("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"),
    *("--confcutdir", "tests/vm", "--color", "no"),
)
"""Imports are slow on an emulated processor, so only those that are needed."""
SECONDS = 1800.0
"""For everything; a run of the default tests takes five minutes on a quiet machine."""
TIMED_OUT = 124


def main(arguments: list[str]) -> int:
    """Boot, run pytest with the arguments inside, and return its status."""
    parser = argparse.ArgumentParser(prog="dev test --vm", add_help=False)
    parser.add_argument("--vm-seconds", type=float, default=SECONDS)
    parser.add_argument("--vm-shell", help="run this instead of the tests")
    known, rest = parser.parse_known_args(arguments)
    if reason := missing():
        print(f"vm: cannot be had here: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with directory() as scratch:
        command(scratch / "out", rest, known.vm_shell, known.vm_seconds)
        disks(scratch)
        initramfs(scratch / "initramfs", kernel_files())
        status = boot(scratch, known.vm_seconds)
    if status:
        print(f"vm: failed ({status}); the console's text is in {CONSOLE}", file=sys.stderr)
    return status


def missing() -> str:
    """Why this machine cannot; empty when it can."""
    if platform.machine() != "x86_64":
        return f"the guest is for x86_64, this is {platform.machine()}"
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=SEARCH)]
    return f"{', '.join(absent)} not installed" if absent else ""


@contextmanager
def directory() -> Iterator[Path]:
    """A scratch directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="codegen-vm-") as name:
        (Path(name) / "out").mkdir()
        yield Path(name)


def command(out: Path, arguments: list[str], shell: str | None, seconds: float) -> None:
    """Write what the guest is to run."""
    named = any(not argument.startswith("-") for argument in arguments)
    pytest = [sys.executable, "-m", "pytest", "--timeout", "300", *PYTEST]
    pytest += [*arguments, *(() if named else TESTS)]
    lines = [
        "export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8",
        f"export PYTHONPATH={shlex.quote(str(ROOT))} PYTHONDONTWRITEBYTECODE=1",
        "export CODEGEN_TEST_VM=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
        "export CODEGEN_TEST_QUOTA_DIRECTORIES=/vm/ext4:/vm/xfs",
        f"cd {shlex.quote(str(ROOT))}",
        # Also when this process is killed: the machine ends by itself.
        f"(/vm/busybox sleep {seconds:.0f}; /vm/busybox poweroff -f) >/dev/null 2>&1 &",
        shell or shlex.join(pytest),
    ]
    (out / "command").write_text("\n".join(lines) + "\n")


def disks(scratch: Path) -> None:
    """Make the file systems that have project quotas."""
    for kind, options in {
        "ext4": ("-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"),
        "xfs": ("-q", "-f"),
    }.items():
        with open(scratch / f"{kind}.img", "wb") as file:
            file.truncate(DISK_BYTES)
        tool = shutil.which(f"mkfs.{kind}", path=SEARCH) or kind
        subprocess.run([tool, *options, str(scratch / f"{kind}.img")], check=True)


def kernel_files() -> Path:
    """Return the unpacked kernel package, fetched when it is not there yet."""
    found = sorted(CACHE.glob("linux-image-*/boot/vmlinuz-*"))
    if found:
        return found[-1].parent.parent
    depends = subprocess.run(
        ["apt-cache", "depends", KERNEL], capture_output=True, text=True, check=False
    ).stdout
    packages = [
        line.split(":", 1)[1].strip() for line in depends.splitlines() if "Depends: linux-" in line
    ]
    if not packages:
        raise SystemExit(f"vm: cannot be had here: apt knows no package {KERNEL} (Debian's kernel)")
    package = packages[0]
    print(f"vm: apt-get download {package} into .tools/vm (the guest's kernel)", file=sys.stderr)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=name, check=True)
        (archive,) = Path(name).glob("*.deb")
        unpacked = Path(name) / "unpacked"
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
        unpacked.rename(CACHE / package)
    return CACHE / package


def initramfs(target: Path, kernel: Path) -> None:
    """Pack busybox, the modules in the order of their dependencies, and the first program."""
    busybox = shutil.which("busybox", path=SEARCH)
    assert busybox is not None
    content: dict[str, bytes] = {
        "bin/busybox": Path(busybox).read_bytes(),
        "init": (ROOT / "scripts/vm_init.sh").read_bytes(),
        "paths": "".join(f"{path}\n" for path in shared_paths()).encode(),
    }
    known = {path.name.split(".")[0].replace("-", "_"): path for path in kernel.rglob("*.ko*")}
    order: list[str] = []
    for module in MODULES:
        load(module, known, order, content)
    content["modules/order"] = "".join(f"{name}.ko\n" for name in order).encode()
    with open(target, "wb") as file:
        for number, name in enumerate(["bin", "modules", "proc", "dev", "newroot"]):
            file.write(entry(name, 0o040755, b"", number + 1))
        for number, (name, data) in enumerate(content.items()):
            file.write(entry(name, 0o100755, data, number + 100))
        file.write(entry("TRAILER!!!", 0, b"", 0))


def load(module: str, known: dict[str, Path], order: list[str], content: dict[str, bytes]) -> None:
    """Add a module after those it needs (its ``depends=``, modinfo(8)); built-in ones are none."""
    path = known.get(module.replace("-", "_"))
    if path is None or module in order:
        return
    data = path.read_bytes()
    data = lzma.decompress(data) if path.suffix == ".xz" else data
    start = data.find(b"\0depends=")
    needed = data[start + 9 : data.index(b"\0", start + 9)].decode() if start >= 0 else ""
    for other in filter(None, needed.split(",")):
        load(other.replace("-", "_"), known, order, content)
    order.append(module)
    content[f"modules/{module}.ko"] = data


def shared_paths() -> list[str]:
    """What the guest sees of this machine, outer directories first."""
    prefixes = {
        ROOT,
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.executable).resolve().parent,
    }
    wanted = {Path("/usr"), *(path for path in prefixes if not path.is_relative_to("/usr"))}
    links = [f"/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")]
    return links + sorted(str(path) for path in wanted)


def entry(name: str, mode: int, data: bytes, inode: int) -> bytes:
    """One file of a ``newc`` archive (kernel driver-api/early-userspace/buffer-format.rst)."""
    fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def boot(scratch: Path, seconds: float) -> int:
    """Run the machine to its end; return what the command inside returned."""
    (kernel,) = kernel_files().glob("boot/vmlinuz-*")
    out = scratch / "out"
    argv = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max"),
        *("-smp", str(min(4, os.cpu_count() or 1)), "-m", str(MEMORY_MIB), "-nodefaults"),
        *("-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio", "-net", "none"),
        *("-kernel", str(kernel), "-initrd", str(scratch / "initramfs")),
        *("-append", "console=ttyS0 loglevel=3 panic=-1 mitigations=off random.trust_cpu=on"),
        *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
        *("-virtfs", f"local,path={out},mount_tag=out,security_model=none"),
    ]
    for kind in ("ext4", "xfs"):
        image = scratch / f"{kind}.img"
        argv += ["-drive", f"file={image},format=raw,if=virtio,cache=unsafe"]
    machine = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": SEARCH},
    )
    late = threading.Event()
    limit = threading.Timer(seconds, lambda: (late.set(), machine.kill()))
    limit.start()
    try:
        assert machine.stdout is not None
        with open(CONSOLE, "wb") as console:
            for line in machine.stdout:
                console.write(line)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        machine.wait()
    finally:
        limit.cancel()
        if machine.poll() is None:
            machine.send_signal(signal.SIGKILL)
            machine.wait()
    if late.is_set():
        print(f"vm: ended after {seconds:.0f} s, its limit", file=sys.stderr)
        return TIMED_OUT
    status = out / "status"
    if not status.exists():
        return 1
    code = int(status.read_text())
    if code == 0:
        CONSOLE.unlink()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
