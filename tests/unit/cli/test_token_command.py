from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from codegen_mcp.cli.main import build
from codegen_mcp.cli.main import main as run_main
from codegen_mcp.coordinator.auth.token_entry import PREFIX, TokenKind, hash_of
from codegen_mcp.coordinator.auth.tokens import load_tokens
from codegen_mcp.coordinator.principal import Quotas


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), ["token", *arguments], catch_exceptions=False)


def test_a_token_is_printed_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    done = run("new", "alice", "--file", str(file))
    token = done.stdout.strip()
    assert token.startswith(PREFIX)
    assert len(token) > 40
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, entries = load_tokens(file, Quotas())
    assert entries[hash_of(token)].name == "alice"


def test_what_is_there_stays_and_the_same_name_may_have_two(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    tokens = [run("new", "alice", "--file", str(file)).stdout.strip() for _ in range(3)]
    file.write_text(file.read_text().rstrip("\n"))  # as an editor may leave it
    tokens.append(
        run("new", "one*", "--worker", "--days", "30", "--file", str(file)).stdout.strip()
    )
    _, entries = load_tokens(file, Quotas())
    assert set(entries) == {hash_of(token) for token in tokens}
    assert len(set(tokens)) == 4
    worker = entries[hash_of(tokens[-1])]
    assert (worker.kind, worker.covers("one-7"), worker.expires_at_ms > 0) == (
        TokenKind.WORKER,
        True,
        True,
    )


def test_quotas_are_written_down(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = run("new", "bob", "--file", str(file), "--sessions", "2", "--tasks", "0").stdout.strip()
    _, entries = load_tokens(file, Quotas(sessions=9, tasks=9, calls_per_minute=9))
    assert entries[hash_of(token)].quotas == Quotas(sessions=2, tasks=0, calls_per_minute=9)


def test_without_a_file_the_line_is_shown(tmp_path: Path) -> None:
    done = run("new", "alice")
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("{")]
    assert json.loads(line)["sha256"] == hash_of(done.stdout.strip())


@pytest.mark.parametrize("name", ["", "local", "a b", "a*", "a:b", "x" * 129, "-"])
def test_a_name_that_could_mean_something_else_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens"
    assert run_main(["token", "new", "--file", str(file), "--", name]) != 0
    assert not file.exists()
    assert "name" in capsys.readouterr().err


def test_a_file_that_is_damaged_or_open_to_others_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens"
    for text, mode, why in (("{", 0o600, "line 1"), ("", 0o644, "chmod")):
        file.write_text(text)
        file.chmod(mode)
        assert run_main(["token", "new", "alice", "--file", str(file)]) == 1
        assert file.read_text() == text
        assert why in capsys.readouterr().err
