"""fs_*, and echo: files of a session as text, images as images, the rest as links."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mcp_types import ContentBlock, ResourceLink

from codegen_mcp.coordinator.mcp.answers import (
    Answer,
    DeleteAnswer,
    EchoAnswer,
    Entry,
    FileAnswer,
    ListAnswer,
    MoveAnswer,
    StatAnswer,
    WriteAnswer,
)
from codegen_mcp.coordinator.mcp.artifacts import image
from codegen_mcp.coordinator.mcp.budget import fitting, json_size
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.follow import Followed
from codegen_mcp.coordinator.mcp.media import as_text, guessed_type, image_type
from codegen_mcp.coordinator.mcp.run_reply import session_fields, session_words
from codegen_mcp.coordinator.mcp.run_tools import with_restore
from codegen_mcp.coordinator.mcp.sessions import Chosen
from codegen_mcp.coordinator.mcp.tasks import run
from codegen_mcp.coordinator.mcp.words import paragraphs, shown_name, size
from codegen_mcp.tools.base import ToolModel

MAX_ENTRIES = 1000
CREATE_DIRS = "create_dirs"
"""Of fs_write; true here unless said otherwise: it is what is meant, and saves a model a call."""


def workspace_uri(session_id: str, path: str) -> str:
    """Name of a file as a resource."""
    return f"workspace://{session_id}/{quote(path)}"


async def do(
    call: Call, tool: str, given: Mapping[str, Any], chosen: Chosen
) -> tuple[Followed, Chosen]:
    """Run a tool in a session.

    Raises:
        WorkerError: The tool could not do its work.
    """
    got = await run(call, chosen.session_id, tool, given)
    got.check()
    return got, await with_restore(call, chosen, got)


async def plain(call: Call, arguments: ToolModel, *, tool: str) -> Reply:
    """Run a tool whose answer is short: echo, fs_write, fs_stat, fs_delete, fs_move."""
    given = arguments.model_dump(exclude_defaults=True, exclude={"session_id"})
    if tool == "fs.write":
        given.setdefault(CREATE_DIRS, True)

    async def work(chosen: Chosen) -> Reply:
        got, used = await do(call, tool, given, chosen)
        answer, text = _PLAIN[tool](got.answer, session_fields(used))
        return Reply(
            value=answer,
            text=paragraphs(text, f"session_id={used.session_id}", session_words(used)),
        )

    return await call.in_session(getattr(arguments, "session_id", ""), work)


async def fs_list(call: Call, arguments: ToolModel, *, tool: str) -> Reply:
    """List as many entries as the budget allows."""
    given = arguments.model_dump(exclude_defaults=True, exclude={"session_id"})
    given["limit"] = min(given.get("limit", 0) or MAX_ENTRIES, MAX_ENTRIES)

    async def work(chosen: Chosen) -> Reply:
        got, used = await do(call, tool, given, chosen)
        found = got.answer
        entries: list[Entry] = []
        lines: list[str] = []
        room = call.config.form_bytes
        for one in found["files"]:
            entry = _entry(one)
            line = _line(entry)
            room -= max(len(entry.model_dump_json()) + 1, json_size(line) + 2)
            if room < 0 and entries:
                break
            entries.append(entry)
            lines.append(line)
        end = given.get("offset", 0) + len(entries)
        more = end if len(entries) < len(found["files"]) else found.get("next_offset", 0)
        return Reply(
            value=ListAnswer(
                **session_fields(used),
                files=tuple(entries),
                total_count=found["total_count"],
                next_offset=more,
            ),
            text=paragraphs(
                *lines,
                "" if lines else "(no files)",
                f"[{len(entries)} of {found['total_count']}; more with offset={more}]"
                if more
                else "",
                f"session_id={used.session_id}",
                session_words(used),
            ),
        )

    return await call.in_session(getattr(arguments, "session_id", ""), work)


async def fs_read(call: Call, arguments: ToolModel, *, tool: str) -> Reply:
    """Read text as far as the budget allows; show images."""
    given = arguments.model_dump(exclude={"session_id"})
    path, offset = given["path"], given["offset"]
    room = call.config.form_bytes
    wanted = min(given["length"] or room, room)

    async def work(chosen: Chosen) -> Reply:
        got, used = await do(call, tool, {"path": path, "offset": offset, "length": wanted}, chosen)
        data, total = _data(got.answer), int(got.answer["size_bytes"])
        kind = image_type(data) if offset == 0 else ""
        facts = {
            **session_fields(used),
            "path": path,
            "content_type": guessed_type(path, data if offset == 0 else b""),
            "size_bytes": total,
            "offset": offset,
        }
        if kind and total <= call.config.image_bytes:
            if total > len(data):
                whole, used = await do(call, tool, {"path": path, "length": total}, chosen)
                data = _data(whole.answer)
            return _reply(used, FileAnswer(**facts, encoding="image"), "", (image(data, kind),))
        data, skipped = _from_character(data, offset)
        kept = fitting(data, room)
        end = offset + skipped + len(kept)
        text = None if kind else as_text(kept, cut=end < total)
        if text is None:
            return _as_link(used, facts, kind, call)
        end = offset + skipped + len(text.encode())
        facts["offset"] = offset + skipped
        more = end if end < total else 0
        answer = FileAnswer(**facts, contents=text, encoding="utf-8", next_offset=more)
        name = shown_name(call.config, "fs.read")
        note = (
            f"[bytes {answer.offset:,} to {end:,} of {total:,}; "
            f"go on with {name}(path, offset={end})]"
            if more or answer.offset
            else ""
        )
        return _reply(used, answer, paragraphs(text, note))

    return await call.in_session(getattr(arguments, "session_id", ""), work)


def _as_link(used: Chosen, facts: dict[str, Any], kind: str, call: Call) -> Reply:
    path, total, session_id = facts["path"], facts["size_bytes"], used.session_id
    if kind:
        why = (
            f"The image has {size(total)}, at most {size(call.config.image_bytes)} are shown. "
            "Scale it down with code, or follow the link."
        )
    else:
        why = "The file is not UTF-8 text. Look at it with code, or follow the link."
    uri = workspace_uri(session_id, path)
    facts["notice"] = paragraphs(facts["notice"], why)
    answer = FileAnswer(**facts, encoding="image" if kind else "binary", uri=uri)
    target = ResourceLink(name=path, uri=uri, mime_type=facts["content_type"], size=total)
    return _reply(used, answer, why, (target,))


def _reply(
    used: Chosen, answer: FileAnswer, text: str, blocks: tuple[ContentBlock, ...] = ()
) -> Reply:
    head = f"[{answer.path}: {answer.content_type}, {size(answer.size_bytes)}]"
    return Reply(
        value=answer,
        text=paragraphs(text, head, f"session_id={used.session_id}", session_words(used)),
        blocks=blocks,
    )


def _data(answer: dict[str, Any]) -> bytes:
    data = answer.get("data") or b""
    if isinstance(data, str):
        return base64.b64decode(data)
    if data:
        return bytes(data)
    contents = str(answer.get("contents", ""))
    if answer.get("encoding") == "base64":
        return base64.b64decode(contents)
    return contents.encode("utf-8", "surrogateescape")


def _from_character(data: bytes, offset: int) -> tuple[bytes, int]:
    """Leave out the end of a character that a range began within; (data, how many bytes)."""
    start = 0
    while offset and start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:], start


def _entry(one: Mapping[str, Any]) -> Entry:
    kind = one.get("kind") or ("directory" if one.get("is_directory") else "")
    return Entry(
        path=one["path"],
        kind=kind or ("symlink" if one.get("link_target") else "file"),
        size_bytes=one["size_bytes"],
        modified_time_ms=one["modified_time_ms"],
        mode=one.get("mode", 0),
        link_target=one.get("link_target", ""),
    )


def _line(entry: Entry) -> str:
    if entry.kind == "directory":
        return f"{entry.path}/"
    target = f" -> {entry.link_target}" if entry.link_target else ""
    return f"{entry.path}{target}  {size(entry.size_bytes)}"


def _echo(found: dict[str, Any], facts: dict[str, Any]) -> tuple[Answer, str]:
    return EchoAnswer(**facts, message=found["message"]), found["message"]


def _write(found: dict[str, Any], facts: dict[str, Any]) -> tuple[Answer, str]:
    answer = WriteAnswer(
        **facts,
        path=found["path"],
        bytes_written=found["bytes_written"],
        sha256=found.get("sha256", ""),
    )
    return answer, f"wrote {size(answer.bytes_written)} to {answer.path}"


def _stat(found: dict[str, Any], facts: dict[str, Any]) -> tuple[Answer, str]:
    entry = _entry(found)
    return StatAnswer(**facts, **entry.model_dump()), f"{entry.kind}: {_line(entry)}"


def _delete(found: dict[str, Any], facts: dict[str, Any]) -> tuple[Answer, str]:
    answer = DeleteAnswer(**facts, path=found["path"], deleted_count=found["deleted_count"])
    return answer, f"deleted {answer.path} ({answer.deleted_count} in all)"


def _move(found: dict[str, Any], facts: dict[str, Any]) -> tuple[Answer, str]:
    answer = MoveAnswer(**facts, source=found["source"], target=found["target"])
    return answer, f"moved {answer.source} to {answer.target}"


_PLAIN = {
    "echo": _echo,
    "fs.write": _write,
    "fs.stat": _stat,
    "fs.delete": _delete,
    "fs.move": _move,
}
