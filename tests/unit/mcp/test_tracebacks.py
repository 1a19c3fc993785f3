from __future__ import annotations

from codegen_mcp.coordinator.mcp.tracebacks import trimmed

LIBRARY = "/env/lib/python3.11/site-packages/pandas/io/parsers.py"


def test_frames_of_libraries_become_one_line() -> None:
    text = f"""before
Traceback (most recent call last):
  File "<code>", line 3, in <module>
    load()
  File "/workspace/mine.py", line 2, in load
    pandas.read_csv("x")
    ~~~~~~~~~~~~~~~^^^^^
  File "{LIBRARY}", line 1026, in read_csv
    return _read(a, b)
  File "{LIBRARY}", line 620, in _read
    parser = TextFileReader(a)
FileNotFoundError: [Errno 2] No such file or directory: 'x'
after
"""
    shown, gone = trimmed(text)
    assert gone == 2
    assert "read_csv(" in shown
    assert "_read(a, b)" not in shown
    assert "  ... 2 frames in pandas/io/parsers.py\nFileNotFoundError" in shown
    assert shown.startswith("before\n")
    assert shown.endswith("\nafter\n")


def test_a_chain_of_exceptions_is_trimmed_in_each_part() -> None:
    one = f'''Traceback (most recent call last):
  File "<code>", line 1, in <module>
    f()
  File "{LIBRARY}", line 1, in f
    raise KeyError
KeyError
'''
    shown, gone = trimmed(f"{one}\nDuring handling, another exception occurred:\n\n{one}")
    assert gone == 2
    assert shown.count("... 1 frame in pandas/io/parsers.py") == 2
    assert shown.count('File "<code>"') == 2


def test_a_traceback_without_a_frame_of_the_users_stays_whole() -> None:
    text = f'Traceback (most recent call last):\n  File "{LIBRARY}", line 1, in f\n    x\nKeyError'
    assert trimmed(text) == (text, 0)


def test_what_only_looks_like_a_traceback_is_left_alone() -> None:
    for text in ("", "  File nothing", "Traceback (most recent call last):", 'File "a", line 1'):
        assert trimmed(text) == (text, 0)
