"""Source distributions: fetched by the fetcher, built in the session, used by that session alone.

uv resolves with wheels only, because a build would run foreign code in the fetcher. Where a
project has no wheel, its source is fetched with the wheels that its build needs, built inside the
session's sandbox, and the resolution is done again with a *stub* in its place: a wheel that has
nothing but the metadata the build gave, with its requirements checked like a caller's. The built
wheel stays in the session; nothing of it ever enters the wheelhouse.
"""

from __future__ import annotations

import email.parser
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import (
    InvalidName,
    InvalidWheelFilename,
    NormalizedName,
    canonicalize_name,
    parse_wheel_filename,
)

from codegen_mcp.core.errors import Corrupt

GUEST = Path(__file__).with_name("builder_guest.py").read_text()
MAX_SOURCES = 10
"""Source distributions in one install."""
_MAX_REQUIREMENTS = 500


@dataclass(frozen=True, slots=True)
class Stub:
    """Stands for a built wheel in a resolution."""

    project: NormalizedName
    version: str
    metadata: str

    @property
    def file_name(self) -> str:
        """Of a wheel that fits every interpreter."""
        return f"{self._stem}-py3-none-any.whl"

    @property
    def _stem(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}"

    def content(self) -> bytes:
        """The wheel: metadata, nothing to install."""
        info = f"{self._stem}.dist-info"
        files = {
            f"{info}/METADATA": self.metadata,
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return out.getvalue()


def read_build(stdout: bytes, project: NormalizedName) -> Stub:
    """Read what a build in a session answered; hostile.

    Raises:
        Corrupt: It is not the metadata of that project's wheel, or requires by URL.
    """
    try:
        answer = json.loads(stdout)
        name, version, _, _ = parse_wheel_filename(str(answer["wheel"]))
        fields = email.parser.HeaderParser().parsestr(str(answer["metadata"]))
        if name != project or canonicalize_name(str(fields["Name"])) != project:
            raise ValueError(f"it is of {name!r}")
        requires = [Requirement(str(one)) for one in fields.get_all("Requires-Dist", [])]
        if len(requires) > _MAX_REQUIREMENTS or any(one.url is not None for one in requires):
            raise ValueError("it requires by URL, or too much")
        extras = [
            canonicalize_name(str(extra), validate=True)
            for extra in fields.get_all("Provides-Extra", [])[:_MAX_REQUIREMENTS]
        ]
    except (
        ValueError,
        KeyError,
        TypeError,
        InvalidWheelFilename,
        InvalidRequirement,
        InvalidName,
    ) as error:
        raise Corrupt(f"the wheel that {project} was built into is not usable: {error}") from None
    lines = ["Metadata-Version: 2.1", f"Name: {project}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {one}" for one in requires]
    return Stub(project, str(version), "\n".join(lines) + "\n")
