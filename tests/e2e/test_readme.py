"""The README's words are true: its example runs, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "printed", "words"),
    [
        ("readme", "total 12\n0 exit\n", "It prints `total 12` and `0 exit`"),
        ("checkpoints", "good good\n", "It prints `good good`"),
    ],
)
def test_the_examples_print_what_it_says(shared_worker, name, printed, words):
    text = (ROOT / "README.md").read_text()
    example = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", text, re.S)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-c", example[1]],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CODEGEN_MCP_ADDRESS": shared_worker},
    )
    assert done.stderr == ""
    assert done.stdout == printed
    assert words in text


def test_every_link_between_documents_leads_to_a_file():
    broken = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_reference_pages_are_what_the_code_says():
    done = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    assert done.returncode == 0
