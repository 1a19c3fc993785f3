"""The file of secrets: what is read, and what is refused without a value in its words."""

import os
from pathlib import Path

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.egress.secrets import load_secrets

VALUE = "abcdefghijklmnop-SECRET"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_values_come_from_the_file_another_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FROM_ENV", VALUE + "3")
    write(tmp_path / "token", VALUE + "2\n")
    file = write(
        tmp_path / "secrets.toml",
        f'[ONE]\nvalue = "{VALUE}1"\nhosts = ["api.example.com"]\n'
        f'[TWO]\nvalue_file = "{tmp_path}/token"\nhosts = ["*.example.com:8443"]\n'
        '[THREE]\nvalue_env = "FROM_ENV"\nhosts = ["a.b"]\nheaders = ["X-Key"]\nusers = ["al"]\n',
    )
    found = load_secrets(file)
    assert [found[name].value.decode()[-1] for name in ("ONE", "TWO", "THREE")] == ["1", "2", "3"]
    assert found["ONE"].allows("api.example.com", 443)
    assert not found["ONE"].allows("api.example.com", 80)
    assert found["TWO"].allows("x.example.com", 8443)
    assert found["THREE"].headers == {b"x-key"}
    assert found["THREE"].for_user("al")
    assert not found["THREE"].for_user("bo")
    assert VALUE not in repr(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'value = "{VALUE}', "no TOML"),
        (f'[A]\nvalue = "{VALUE}"', "names no hosts"),
        (f'[A]\nvalue = "{VALUE}"\nhosts = ["*"]', "name the hosts"),
        (f'[A]\nvalue = "{VALUE}"\nhosts = ["http://a"]', "bad host"),
        (f'[A]\nvalue = "{VALUE}"\nhosts = "a.b"', "list of texts"),
        (f'[A]\nvalue = "{VALUE}"\nhosts = ["a.b"]\nother = 1', "other keys"),
        (f'["A B"]\nvalue = "{VALUE}"\nhosts = ["a.b"]', "environment variable"),
        ('[A]\nhosts = ["a.b"]', "needs one of"),
        ('[A]\nvalue = "short"\nhosts = ["a.b"]', "16 to"),
        ('[A]\nvalue = "with a space in the middle"\nhosts = ["a.b"]', "printable"),
        ('[A]\nvalue_file = "/no/such/file"\nhosts = ["a.b"]', "cannot be read"),
    ],
)
def test_a_bad_entry_is_named_and_its_value_is_not_told(tmp_path, text, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        load_secrets(write(tmp_path / "secrets.toml", text))
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    file = write(tmp_path / "s.toml", f'[A]\nvalue = "{VALUE}"\nhosts = ["a.b"]\n', mode)
    with pytest.raises(InvalidRequest, match="chmod"):
        load_secrets(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_refused(tmp_path):
    file = write(tmp_path / "s.toml", f'[A]\nvalue = "{VALUE}"\nhosts = ["a.b"]\n')
    os.chown(file, 12345, 12345)
    with pytest.raises(InvalidRequest, match="uid 12345"):
        load_secrets(file)
