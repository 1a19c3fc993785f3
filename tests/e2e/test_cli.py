"""The command line as a new user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = [
    sys.executable,
    "-c",
    "import sys; from codegen_mcp.cli.main import main; sys.exit(main())",
]
HEAVY = ("grpc", "click", "pydantic", "structlog", "uvicorn", "starlette", "rich")


def cli(*arguments: str, env: dict[str, str] | None = None, stdin: str = "", timeout: float = 90):
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
    )


def test_version_answers_without_importing_anything_heavy():
    check = (
        "import sys; from codegen_mcp.cli.main import main; main(['--version']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    version, heavy = done.stdout.splitlines()
    assert version.startswith("codegen-mcp ")
    assert heavy == "[]"


def test_help_names_every_command():
    done = cli("--help")
    assert done.returncode == 0
    for command in ("worker", "run", "doctor", "sessions", "tools", "config"):
        assert command in done.stdout


def test_an_unknown_command_and_a_bad_setting_are_told_by_name():
    assert "nope" in cli("nope").stderr
    bad = cli("config", env={"MAX_SESSIONS": "none"})
    assert bad.returncode != 0
    assert "max_sessions" in bad.stderr
    assert "'none'" in bad.stderr


def test_settings_come_from_the_environment():
    shown = json.loads(cli("config", "--json", env={"MAX_SESSIONS": "7"}).stdout)
    assert shown["max_sessions"] == 7


def test_another_address_than_loopback_is_refused_with_the_flag_that_accepts_it(tmp_path):
    done = cli("worker", "--host", "0.0.0.0", "--workspace", str(tmp_path / "state"))
    assert done.returncode == 1
    assert "--insecure-no-auth" in done.stderr


def test_tools_lists_every_tool_with_its_schema():
    listed = json.loads(cli("tools", "--json").stdout)
    names = [tool["name"] for tool in listed]
    assert {"echo", "fs.read", "fs.write", "fs.list", "run.python", "pkg.install"} <= set(names)
    assert all(tool["arguments"]["type"] == "object" for tool in listed)
    shown = cli("tools").stdout
    assert all(name in shown for name in names)


def test_run_executes_a_local_file_with_live_output_and_its_exit_code(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\nprint('args', sys.argv[1:])\nprint('in', sys.stdin.read())\n"
        "print('err', file=sys.stderr)\nopen('out.txt', 'w').write('made')\nsys.exit(3)\n"
    )
    done = subprocess.run(
        [*PROGRAM, "run", "--download", "out.txt", str(script), "-x", "--y=1"],
        input="hello",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=90,
    )
    assert done.returncode == 3
    assert done.stdout == "args ['-x', '--y=1']\nin hello\n"
    assert done.stderr == "err\n"
    assert (tmp_path / "out.txt").read_text() == "made"


def test_run_says_why_a_program_was_stopped(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text("print('begun', flush=True)\nwhile True: pass\n")
    done = cli("run", "--timeout", "1", str(script))
    assert done.returncode == 124
    assert done.stdout == "begun\n"
    assert "time limit" in done.stderr


def test_doctor_names_backends_and_who_enforces_what():
    done = cli("doctor", "--json")
    report = json.loads(done.stdout)
    names = [backend["name"] for backend in report["backends"]]
    assert names == ["gvisor", "container", "bubblewrap", "process-hardened"]
    for backend in report["backends"]:
        assert {"name", "available", "version", "reason", "fix", "enforces"} <= set(backend)
        assert backend["available"] or backend["reason"]
    assert done.returncode == (0 if report["worker"]["starts"] else 1)
    assert bool(report["worker"]["start_up"]) != bool(report["worker"]["refusal"])
    for fact in report["host"]:
        assert fact["good"] or fact["fix"]


def test_sessions_shows_and_ends_those_of_a_running_worker(shared_worker):
    from codegen_mcp.client import Sandbox

    sandbox = Sandbox.create(address=shared_worker)
    try:
        assert sandbox.sandbox_id in cli("sessions", "--address", shared_worker).stdout
        listed = json.loads(cli("sessions", "--address", shared_worker, "--json").stdout)
        assert sandbox.sandbox_id in [one["sandbox_id"] for one in listed]
        ended = cli("sessions", "--address", shared_worker, "kill", sandbox.sandbox_id)
        assert ended.returncode == 0
        assert not sandbox.is_running()
    finally:
        sandbox.close()


def test_sessions_without_a_worker_says_so():
    done = cli("sessions", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_worker_ends_by_itself(tmp_path, number):
    os.chmod(tmp_path, 0o711)
    state = Path("/var/tmp") / f"codegen-signal-{os.getpid()}-{number}"
    env = {**os.environ, "DISK_BYTES": str(32 << 20), "DISK_RESERVE_BYTES": "0", "POOL_SIZE": "0"}
    worker = subprocess.Popen(
        [*PROGRAM, "worker", "--port", "0", "--workspace", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    try:
        lines: list[str] = []
        assert worker.stdout is not None
        for line in worker.stdout:
            lines.append(line)
            if "listening on" in line:
                break
        started = time.monotonic()
        worker.send_signal(number)
        rest = worker.stdout.read()
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
        subprocess.run(["rm", "-rf", state], check=True)
    assert "draining" in rest
    assert any("enforced by kernel" in line for line in lines)
    assert time.monotonic() - started < 20
