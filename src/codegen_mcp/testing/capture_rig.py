"""Captures of a tree that is edited meanwhile, at places that the test chooses; without a session.

A capture is taken as ``engine.checkpoints.taker`` does it, and restored by the real program.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveWriter
from codegen_mcp.engine.checkpoints.aside import Aside
from codegen_mcp.engine.checkpoints.capture import ROOTS, Base, Capture
from codegen_mcp.engine.checkpoints.live_state import LiveState
from codegen_mcp.engine.checkpoints.manifest import Manifest, encode_manifest
from codegen_mcp.engine.checkpoints.scan import Seen
from codegen_mcp.engine.checkpoints.tree_compare import check_volume
from codegen_mcp.engine.checkpoints.tree_watch import Changes, TreeWatch
from codegen_mcp.engine.checkpoints.watches import start_watch
from codegen_mcp.engine.checkpoints.writers import Writers
from codegen_mcp.testing.random_tree import Facts, tree_of
from codegen_mcp.testing.refill_rig import SESSION, Saved, make_volume, run_program, stream

Act = Callable[[], object]
_ROOMY = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One capture."""

    saved: Saved
    live: LiveState
    tree: dict[bytes, Facts]
    """As it was while nothing ran."""
    copied: int
    """How many files were copied in that moment."""


class _Interrupted(Capture):
    """Lets something happen before some file is read."""

    acts: Mapping[int, Callable[[Capture], object]]
    seen = 0

    def _pack(self, seen: Seen, directory: int = -1) -> None:
        act = self.acts.get(self.seen)
        self.seen += 1
        if act is not None:
            act(self)
        super()._pack(seen, directory)


def capture(
    root: Path,
    parent: Shot | None = None,
    *,
    during: Mapping[int, Callable[[Capture], object]] | None = None,
    rounds: Sequence[Act] = (),
    last: Act | None = None,
    after: Act | None = None,
    writers: Callable[[], Writers] = Writers,
    watch: Callable[[int, Sequence[bytes]], TreeWatch] = start_watch,
    look: Callable[[bytes], dict[bytes, Facts]] = tree_of,
) -> Shot:
    """Capture a volume.

    Args:
        root: Holds ``workspace`` and ``venv``.
        parent: The capture before this one; None gives a full one.
        during: What happens before the n-th file is read (0 is the first).
        rounds: What happens before each further round.
        last: What happens just before everything stands still.
        after: What happens just after that.
        writers: What may be written to, at the beginning and while everything stands still.
        watch: Makes and starts the watch.
        look: Tells what the tree is while everything stands still.
    """
    number = parent.saved.number + 1 if parent else 1
    base = None
    if parent is not None:
        base = Base({entry.path: entry for entry in parent.saved.manifest.entries}, parent.live)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    scratch = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
    aside = Aside(lambda: scratch)
    watching = watch(fd, ROOTS)
    try:
        with tempfile.TemporaryFile() as file, ArchiveWriter(file) as writer:
            one = _Interrupted(fd, writer, aside, number, base)
            one.acts = during or {}
            one.survey(writers())
            changes = watching.drain()
            for act in rounds:
                if not changes.overflow:
                    one.catch_up(changes)
                    changes = Changes()
                act()
                changes.add(watching.drain())
            if last is not None:
                last()
                changes.add(watching.drain())
            one.recheck(changes, writers())
            tree = look(os.fsencode(root))
            copied = len(one._copies)
            if after is not None:
                after()
            captured = one.complete()
            summary = writer.finish()
            file.seek(0)
            archive = file.read()
    finally:
        watching.close()
        aside.close()
        os.close(fd)
    manifest = Manifest(f"{SESSION}.1.{number}", number - 1, tuple(captured.entries))
    verify_archive([archive], manifest, number, sha256=summary.sha256, max_inflated=_ROOMY)
    saved = Saved(
        number=number,
        manifest=manifest,
        lines=gzip.decompress(encode_manifest(manifest)),
        archive=archive,
        chain=(*parent.saved.chain, parent.saved) if parent else (),
    )
    live = LiveState(f"{SESSION}.1.{number}", one._begun_ns, captured.states)
    return Shot(saved=saved, live=live, tree=tree, copied=copied)


def restore(shot: Shot, directory: Path) -> dict[bytes, Facts]:
    """Restore into a new volume; the tree that came of it."""
    root = make_volume(directory)
    needed = {entry.source for entry in shot.saved.manifest.entries if entry.source}
    archives = {one.number: one.tar for one in shot.saved.chain if one.number in needed}
    data = stream(shot.saved.lines, {**archives, shot.saved.number: shot.saved.tar})
    done = run_program(root, data)
    assert done.returncode == 0, done
    check_volume(root, shot.saved.manifest.entries)
    return tree_of(os.fsencode(root))
