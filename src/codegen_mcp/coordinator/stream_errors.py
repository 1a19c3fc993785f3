"""Statuses and errors that come over a TaskStream, as errors of ``core.errors``."""

from __future__ import annotations

import json

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.remote_errors import from_status
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.server.status import DOMAIN, packed

_CODES = {code.value[0]: code for code in StatusCode}
_NAMES = {code.name: code for code in StatusCode}


def from_bytes(data: bytes, worker_id: str) -> WorkerError:
    """Return the error of a serialized ``google.rpc.Status`` that is not OK."""
    status = status_pb2.Status.FromString(data)
    code = _CODES.get(status.code, StatusCode.UNKNOWN)
    _name_reason(status, code, "")
    return from_status(code, status.message, status, worker_id)


def from_stream_error(error: pb.TaskStreamError, worker_id: str) -> WorkerError:
    """Return the error of a refused operation; exactly, where the worker told its status."""
    if error.status:
        return from_bytes(error.status, worker_id)
    code = _NAMES.get(error.code, StatusCode.UNKNOWN)
    status = status_pb2.Status(code=code.value[0], message=error.message)
    _name_reason(status, code, _reason_in(error.details))
    return from_status(code, error.message, status, worker_id)


def _name_reason(status: status_pb2.Status, code: StatusCode, reason: str) -> None:
    """A worker said this, and no torn connection: so it has a reason."""
    if not any(one.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for one in status.details):
        info = error_details_pb2.ErrorInfo(reason=reason or code.name, domain=DOMAIN)
        status.details.append(packed(info))


def _reason_in(details: str) -> str:
    try:
        facts = json.loads(details)
    except ValueError:
        return ""
    reason = facts.get("reason", "") if isinstance(facts, dict) else ""
    return reason if isinstance(reason, str) else ""
