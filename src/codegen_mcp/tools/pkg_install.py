"""pkg.install: packages into the session's environment."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.task import EndedBy, Outcome
from codegen_mcp.languages.base import InstallRequest, InstallResult
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.run_output import shown

MAX_PACKAGES = 256
MAX_SPECIFIER_LENGTH = 1024


class PkgInstallArguments(ToolModel):
    """Arguments of pkg.install."""

    packages: tuple[str, ...] = Field(
        description="Names with optional versions: 'requests', 'numpy>=2,<3', 'uvicorn[standard]'."
    )
    upgrade: bool = Field(False, description="Replace installed versions by the newest allowed.")
    index_url: str = Field("", description="One of the worker's configured indexes; empty: first.")
    no_deps: bool = Field(False, description="Install only what is named.")


class PackageInfo(ToolModel):
    """One installed package."""

    name: str
    version: str
    location: str


class PkgInstallResult(ToolModel):
    """Result of pkg.install."""

    installed: tuple[PackageInfo, ...] = Field(description="As they are now in the environment.")
    failed: tuple[str, ...] = Field(description="Of packages, those that stand in the way.")
    output: str = Field(description="The installer's own words.")
    exit_code: int = Field(description="0: all installed; else nothing was changed.")


class PkgInstallTool:
    """Installs by the session's language."""

    spec = ToolSpec(
        name="pkg.install",
        title="Install packages",
        description=(
            "Install Python packages into the session's environment; they can be imported at "
            "once and stay until the session ends. All or nothing: when exit_code is not 0 the "
            "environment is as it was, and output says why. Options, URLs and paths are refused."
        ),
        arguments=PkgInstallArguments,
        result=PkgInstallResult,
        runs_code=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: PkgInstallArguments) -> ToolResult:
        """Hand the request to the language's installer, which validates each specifier."""
        _check_packages(arguments.packages)
        result = await ctx.install(
            InstallRequest(
                packages=arguments.packages,
                upgrade=arguments.upgrade,
                index_url=arguments.index_url,
                no_deps=arguments.no_deps,
            )
        )
        return ToolResult(_value(result), _outcome(result))


def _check_packages(packages: tuple[str, ...]) -> None:
    if not packages:
        raise InvalidRequest("packages is empty; name at least one, for example 'requests'")
    if len(packages) > MAX_PACKAGES:
        raise InvalidRequest(f"{len(packages)} packages at once; at most {MAX_PACKAGES} a call")
    for package in packages:
        if not package.strip() or len(package) > MAX_SPECIFIER_LENGTH:
            raise InvalidRequest(
                f"package {package[:80]!r} is empty or longer than {MAX_SPECIFIER_LENGTH} "
                "characters; give a name with an optional version"
            )


def _value(result: InstallResult) -> PkgInstallResult:
    (output, _), _ = shown(result.output.encode("utf-8", "replace"), b"")
    return PkgInstallResult(
        installed=tuple(
            PackageInfo(name=package.name, version=package.version, location=package.location)
            for package in result.installed
        ),
        failed=tuple(result.failed),
        output=output,
        exit_code=result.exit_code,
    )


def _outcome(result: InstallResult) -> Outcome | None:
    """An install that failed without a run in the sandbox still is a failed task."""
    if result.exit_code == 0 or (result.outcome is not None and result.outcome.exit_code != 0):
        return result.outcome
    return Outcome(
        ended_by=EndedBy.EXIT,
        exit_code=result.exit_code,
        remedy="read output for the reason; correct the names or versions and install again",
    )
