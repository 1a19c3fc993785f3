"""Attacks that plant something now to have it run with more rights later."""

from __future__ import annotations

from codegen_mcp.sandbox.selftest.attack import Attack

_CHECK = """
import glob

marks = glob.glob("planted-mark-*")
for mark in marks:
    os.unlink(mark)
bad = [m for m in marks if m.endswith("-guest")]
broken("ran in the guest", bad) if bad else held(
    "did not run in the guest;", len(marks), "runs in ours"
)
"""
_PLANT = '''
MARK = """
import os
try:
    bare = os.environ.get("PATH") == "/usr/bin:/bin" and "SELFTEST_HOST" not in os.environ
    if os.getpid() == 1 or bare:
        open("%s/planted-mark-%%d-guest" %% os.getpid(), "w").close()
except OSError:
    pass
""" % os.getcwd()
'''

PERSISTENCE = (
    Attack(
        name="plant modules in the workspace that the guest imports",
        wall="filesystem",
        source="https://attack.mitre.org/techniques/T1574/ (hijacked execution)",
        code=_PLANT
        + """
for name in (
    "sitecustomize",
    "usercustomize",
    "json",
    "select",
    "signal",
    "runpy",
    "codec",
    "config",
):
    with open(name + ".py", "w") as f:
        f.write(MARK)
""",
        then="""
for name in (
    "sitecustomize",
    "usercustomize",
    "json",
    "select",
    "signal",
    "runpy",
    "codec",
    "config",
):
    attempt(lambda: os.unlink(name + ".py"))
"""
        + _CHECK,
        reboot=True,
    ),
    Attack(
        name="plant .pth and sitecustomize in the session's environment",
        wall="filesystem",
        source="https://docs.python.org/3/library/site.html",
        code=_PLANT
        + """
import glob

for directory in glob.glob(HOST["venv"] + "/lib/python*/site-packages"):
    with open(directory + "/planted.pth", "w") as f:
        f.write("import os; exec(" + repr(MARK) + ")\\n")
    with open(directory + "/sitecustomize.py", "w") as f:
        f.write(MARK)
""",
        then="""
import glob

for path in glob.glob(HOST["venv"] + "/lib/python*/site-packages/planted.pth") + glob.glob(
    HOST["venv"] + "/lib/python*/site-packages/sitecustomize.py"
):
    os.unlink(path)
"""
        + _CHECK,
        reboot=True,
    ),
    Attack(
        name="replace the environment's interpreter before the guest starts again",
        wall="filesystem",
        source="https://cwe.mitre.org/data/definitions/426.html (untrusted search path)",
        code="""
python = HOST["venv"] + "/bin/python"
attempt(lambda: os.rename(python, python + ".kept"))
with open(python, "w") as f:
    f.write(
        "#!/bin/sh\\ntouch %s/planted-mark-$$-$([ $$ = 1 ] && echo guest || echo run)\\n"
        'exec %s.kept "$@"\\n' % (os.getcwd(), python)
    )
os.chmod(python, 0o755)
""",
        then="""
python = HOST["venv"] + "/bin/python"
attempt(lambda: os.rename(python + ".kept", python))
"""
        + _CHECK,
        reboot=True,
    ),
    Attack(
        name="turn workspace and environment into links",
        wall="filesystem",
        source="CVE-2018-15664 https://nvd.nist.gov/vuln/detail/CVE-2018-15664 (docker cp)",
        code="""
here = os.getcwd()
refused(
    workspace=lambda: os.rename(here, here + "-moved"),
    venv=lambda: os.rename(HOST["venv"], HOST["venv"] + "-moved"),
    link=lambda: os.symlink("/etc", os.path.dirname(here) + "/planted-link"),
    rmdir=lambda: os.rmdir(HOST["venv"]),
)
""",
        then=_CHECK,
        reboot=True,
    ),
    Attack(
        name="set variables that the next run inherits",
        wall="processes",
        source="https://attack.mitre.org/techniques/T1574/006/ (LD_PRELOAD)",
        code="""
os.environ["LD_PRELOAD"] = "/workspace/planted.so"
os.environ["PYTHONSTARTUP"] = "/workspace/planted.py"
LIBC.setenv(b"LD_PRELOAD", b"/workspace/planted.so", 1)
for name in (".bashrc", ".profile", ".pythonrc.py"):
    with open(name, "w") as f:
        f.write("export PLANTED=1\\n")
import builtins

builtins.print = None
sys.modules["json"] = None
""",
        then="""
import json

for name in (".bashrc", ".profile", ".pythonrc.py"):
    attempt(lambda: os.unlink(name))
bad = [n for n in ("LD_PRELOAD", "PYTHONSTARTUP", "PLANTED") if n in os.environ]
broken(bad) if bad else held("the next run starts clean")
""",
    ),
)
