"""The guest's way to call with nothing below, tried in a plain interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import codegen_mcp.sandbox.guest

GUEST = Path(codegen_mcp.sandbox.guest.__file__).parent

DRIVER = f"""
import sys
sys.path.insert(0, {str(GUEST)!r})
import frames

def deep(levels, source):
    if levels:
        return deep(levels - 1, source)
    names = {{"__name__": "__main__"}}
    return frames.call(exec, compile(source, "<program>", "exec"), names) or names

"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", DRIVER + program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_is_the_first_frame_and_the_caller_goes_on_as_before() -> None:
    said = run(
        "names = deep(5, 'import sys; below = sys._getframe().f_back')\n"
        "print(names['below'])\n"
        "import traceback\n"
        "print(len(traceback.extract_stack()))\n"
    )

    assert said == "None\n1\n"


def test_an_exception_passes_through_to_the_caller() -> None:
    said = run(
        "try:\n"
        "    deep(3, '1 / 0')\n"
        "except ZeroDivisionError as error:\n"
        "    print(error, error.__traceback__.tb_frame.f_code.co_name)\n"
    )

    assert said == "division by zero <module>\n"


def test_the_whole_recursion_limit_is_there_however_deep_the_caller_is() -> None:
    count = (
        "depth = 0\\n"
        "def dive():\\n"
        "    global depth\\n"
        "    depth += 1\\n"
        "    dive()\\n"
        "try:\\n"
        "    dive()\\n"
        "except RecursionError:\\n"
        "    pass\\n"
    )

    said = run(f'names = deep(200, "{count}")\nprint(names["depth"])\n')

    assert int(said) == 999


def test_calls_may_be_nested_in_what_was_called() -> None:
    said = run(
        "import builtins\n"
        "builtins.call = frames.call\n"
        "deep(2, 'call(exec, \"import sys; print(sys._getframe().f_back)\", {})')\n"
        "deep(2, 'call(print, 1)')\n"
    )

    assert said == "None\n1\n"


def test_what_was_left_on_of_tracing_rests_until_the_next_call() -> None:
    said = run(
        "source = '''\n"
        "import sys\n"
        "seen = []\n"
        "def trace(frame, event, arg):\n"
        "    seen.append(frame.f_code.co_name)\n"
        "def own(): pass\n"
        "sys.settrace(trace)\n"
        "'''\n"
        "names = deep(1, source)\n"
        "def ours(): pass\n"
        "ours()\n"
        "frames.call(names['own'])\n"
        "ours()\n"
        "print(names['seen'])\n"
    )

    assert said == "['own']\n"
