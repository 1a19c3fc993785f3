"""The Python SDK: ``Sandbox`` and ``AsyncSandbox``, with E2B's names."""

from codegen_mcp.client.async_sandbox import AsyncSandbox
from codegen_mcp.client.checkpoint_results import CheckpointInfo, RestoreInfo
from codegen_mcp.client.checkpoints import AsyncCheckpoint, Checkpoint
from codegen_mcp.client.errors import (
    AuthenticationException,
    CancelledException,
    CheckpointNotFoundException,
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
from codegen_mcp.client.results import (
    ArtifactInfo,
    CommandResult,
    EntryInfo,
    Package,
    SandboxInfo,
    WriteInfo,
)
from codegen_mcp.client.sandbox import Sandbox

__all__ = [
    "ArtifactInfo",
    "AsyncCheckpoint",
    "AsyncSandbox",
    "AuthenticationException",
    "CancelledException",
    "Checkpoint",
    "CheckpointInfo",
    "CheckpointNotFoundException",
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
    "RestoreInfo",
    "Sandbox",
    "SandboxException",
    "SandboxInfo",
    "SandboxNotFoundException",
    "StateException",
    "TimeoutException",
    "UnavailableException",
    "WriteInfo",
]
