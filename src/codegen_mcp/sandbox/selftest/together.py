"""Many attacks in one run, each in a child of its own: what a probe can afford at every start.

A child is forked behind the prelude, with the same descriptors as the run itself has, so that an
attack meets there what it would meet alone. Only its ``HELD`` counts: whatever else came of an
attack here (broken, killed, silent), it is tried again alone and judged by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.selftest.attack import Attack
from codegen_mcp.sandbox.selftest.tools import program

_MARK = "ATTACK"
_WORDS = 2000
"""Characters of an attack's verdict that are kept."""

_DRIVER = """
def _alone(code):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(w, 1)
        os.close(r)
        os.close(w)
        try:
            exec(compile(code, "attack.py", "exec"), dict(globals()))
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(w)
    said = b""
    while part := os.read(r, 65536):
        said += part
    os.close(r)
    os.waitpid(pid, 0)
    lines = [line for line in said.decode(errors="replace").splitlines()
             if line.startswith(("HELD", "BROKEN"))]
    return lines[-1][:WORDS] if lines else ""

for _number, _code in enumerate(CODES):
    print(MARK, _number, _alone(_code), flush=True)
"""


def can_share(attack: Attack) -> bool:
    """Whether it ends by its own word and leaves nothing that another attack would meet."""
    return attack.ends_by == (EndedBy.EXIT,) and not attack.then and not attack.may_lose_guest


def shared_program(attacks: Sequence[Attack]) -> bytes:
    """Return the program that tries them one after the other."""
    codes = [attack.code.strip() for attack in attacks]
    facts = f"CODES, MARK, WORDS = {codes!r}, {_MARK!r}, {_WORDS}\n"
    return program(facts + _DRIVER)


def held_in(text: str, attacks: Sequence[Attack]) -> Mapping[str, str]:
    """Return the names of the attacks that said HELD, each with what it saw.

    Args:
        text: What the program printed.
        attacks: Those that it was made of.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        number, _, words = rest.partition(" ")
        if mark == _MARK and number.isdigit() and words.startswith("HELD"):
            found[attacks[int(number)].name] = words.removeprefix("HELD").strip()
    return found
