"""A coordinator serves every method that a worker does."""

from __future__ import annotations

import pytest

from codegen_mcp._proto.codegen.v1 import (
    artifact_service_pb2,
    session_management_pb2,
    task_execution_pb2,
    workspace_files_pb2,
)
from codegen_mcp.coordinator.calls import LOOKS, REPEATABLE
from codegen_mcp.coordinator.directory.memory import MemoryDirectory
from codegen_mcp.coordinator.gateway import Router
from codegen_mcp.coordinator.methods import DOWNLOAD, TASKS, UNARY, UPLOAD
from codegen_mcp.coordinator.principal import ANYBODY
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.errors import NotImplementedYet, WorkerError

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (session_management_pb2, "SessionManagement"),
        (task_execution_pb2, "TaskExecution"),
        (artifact_service_pb2, "ArtifactService"),
        (workspace_files_pb2, "WorkspaceFiles"),
    )
]
KNOWN = {
    **UNARY,
    **TASKS,
    "WorkspaceFiles/Upload": UPLOAD,
    "WorkspaceFiles/Download": DOWNLOAD,
}


def test_the_table_has_every_method_of_the_wire_with_its_messages() -> None:
    wire = {
        f"{service.name}/{method.name}": (method.input_type.name, method.output_type.name)
        for service in SERVICES
        for method in service.methods
    }
    table = {
        name: (method.request.DESCRIPTOR.name, method.response.DESCRIPTOR.name)
        for name, method in KNOWN.items()
    }
    assert table == wire


def test_what_is_said_of_methods_is_said_of_ones_that_there_are() -> None:
    assert set(UNARY) >= REPEATABLE | LOOKS


@pytest.mark.parametrize("name", sorted(UNARY))
async def test_every_unary_method_is_routed(name: str) -> None:
    async with (
        MemoryDirectory() as directory,
        Workers(directory) as workers,
        Router(directory, workers) as router,
    ):
        try:
            await router.unary(ANYBODY, name, UNARY[name].request())
        except NotImplementedYet:
            pytest.fail(f"{name} is not routed")
        except WorkerError:
            pass  # there is no worker, or the request says nothing
