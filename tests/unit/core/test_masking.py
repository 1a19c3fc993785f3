"""Secrets in addresses are not shown."""

from __future__ import annotations

import pytest

from codegen_mcp.core.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("/a@b/c?d", "/a@b/c?d"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/p", "s3://***@bucket/p"),
        ("https://u:p@ss@h:1/simple/ https://token@i/s", "https://***@h:1/simple/ https://***@i/s"),
        ("https://h/simple?token=1&b=2", "https://h/simple?***"),
        ("https://h/a@b", "https://h/a@b"),
    ],
)
def test_user_password_and_query_are_masked_and_nothing_else(text, shown):
    assert masked(text) == shown
