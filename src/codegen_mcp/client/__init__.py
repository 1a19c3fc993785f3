"""The Python SDK: ``Sandbox`` and ``AsyncSandbox``, with E2B's names."""

from codegen_mcp.client.async_sandbox import AsyncSandbox
from codegen_mcp.client.errors import (
    AuthenticationException,
    CancelledException,
    CommandExitException,
    DataLossException,
    InternalException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    NotFoundException,
    NotImplementedException,
    RateLimitException,
    SandboxException,
    SandboxNotFoundException,
    StateException,
    TimeoutException,
    UnavailableException,
)
from codegen_mcp.client.results import CommandResult, EntryInfo, Package, SandboxInfo, WriteInfo
from codegen_mcp.client.sandbox import Sandbox

__all__ = [
    "AsyncSandbox",
    "AuthenticationException",
    "CancelledException",
    "CommandExitException",
    "CommandResult",
    "DataLossException",
    "EntryInfo",
    "InternalException",
    "InvalidArgumentException",
    "NotEnoughSpaceException",
    "NotFoundException",
    "NotImplementedException",
    "Package",
    "RateLimitException",
    "Sandbox",
    "SandboxException",
    "SandboxInfo",
    "SandboxNotFoundException",
    "StateException",
    "TimeoutException",
    "UnavailableException",
    "WriteInfo",
]
