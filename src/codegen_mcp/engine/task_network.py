"""The way out that a task asks for."""

from __future__ import annotations

from codegen_mcp.core.errors import FieldNotSupported
from codegen_mcp.egress.service import CLOSED, SessionEgress
from codegen_mcp.egress.task_egress import TaskEgress
from codegen_mcp.engine.base import TaskSubmission


def task_network(egress: SessionEgress | None, asked: TaskSubmission) -> TaskEgress | None:
    """Make it; None when the task has no network.

    Raises:
        FieldNotSupported: The worker has no way out, and the task needs one.
        InvalidRequest, WrongState: It asks for what it cannot have.
    """
    bounds = asked.constraints
    if egress is not None:
        return egress.task(
            allow_network=bounds.allow_network,
            allow_hosts=bounds.allow_hosts,
            secrets=asked.secrets,
        )
    for field, value in (
        ("constraints.allow_network", bounds.allow_network),
        ("constraints.allow_hosts", bounds.allow_hosts),
        ("context.secrets", asked.secrets),
    ):
        if value:
            raise FieldNotSupported(
                f"{field} is not supported by this worker; {CLOSED}", metadata={"field": field}
            )
    return None
