"""codegen-mcp audit: check the audit log."""

from __future__ import annotations

from pathlib import Path

import click

from codegen_mcp.cli.options import make_settings
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.telemetry.audit_chain import Head
from codegen_mcp.telemetry.audit_verify import Findings, heads_in, verify


@click.group()
def audit() -> None:
    """The record of who called what."""


@audit.command("verify")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Of the log (default: as AUDIT_DIR and BASE_WORKSPACE say).",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="SEQUENCE:DIGEST",
    help="A head that was published (metric audit_head_info); may be given again.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="A file of the service's log lines, whose heads (event audit.head) are all checked.",
)
def verify_command(directory: Path | None, heads: tuple[str, ...], logs: tuple[Path, ...]) -> int:
    """Check that no record was changed, cut off or replaced. Exit code 1: one was."""
    if directory is None:
        settings = make_settings()
        config = settings.audit(settings.base_workspace)
        if config is None:
            raise InvalidRequest("AUDIT_DIR is off; name the directory with --dir")
        directory = config.directory
    wanted = [_head(text) for text in heads]
    for log in logs:
        with click.open_file(str(log), errors="replace") as lines:
            found = heads_in(lines)
        if not found:
            raise InvalidRequest(f"{str(log)!r} has no line of the event 'audit.head'")
        wanted += found
    findings = verify(directory, wanted)
    for line in words(findings, given=bool(wanted)):
        click.echo(line)
    for problem in findings.problems:
        click.echo(f"DAMAGED: {problem}", err=True)
    return 0 if findings.sound else 1


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise InvalidRequest(f"--head: {error}") from None


def words(found: Findings, *, given: bool) -> list[str]:
    """Say what was found; problems apart."""
    lines = [
        f"{found.records} records of {found.calls} calls in {found.files} files, "
        f"from number {found.first} on",
        f"head {found.head}",
    ]
    if found.first > 1:
        lines.append(f"records before {found.first} were taken away; what is left is checked")
    if found.torn:
        lines.append(f"{found.torn} half lines that crashes left, all accounted for")
    if found.unfinished:
        lines.append(f"{found.unfinished} bytes of a last line that is not finished")
    if found.missed:
        lines.append(f"{found.missed} records could not be written, as the log says itself")
    if found.lost_calls:
        lines.append(f"{found.lost_calls} calls have no outcome: their process died")
    if not found.sound:
        return lines
    if given:
        lines.append(f"sound; {found.heads_checked} published heads are part of it")
    else:
        lines.append(
            "sound in itself; whether its end was cut off, or all of it made anew, only a "
            "published head tells (--head, --log)"
        )
    return lines
