"""How much a server takes on at once."""

from __future__ import annotations

import pytest

from codegen_mcp.core.errors import Draining, Full
from codegen_mcp.server.admission import Admission

CREATE = "/codegen.v1.SessionManagement/CreateSession"
BEAT = "/codegen.v1.WorkerLifecycle/Heartbeat"


def test_heartbeats_are_taken_though_as_many_calls_as_may_be_are_under_way():
    admission = Admission(2)
    admission.enter(CREATE)
    admission.enter(CREATE)
    with pytest.raises(Full):
        admission.enter(CREATE)
    admission.enter(BEAT)
    assert admission.in_flight == 3
    admission.leave()
    admission.draining = True
    admission.enter(BEAT)
    admission.leave()
    admission.leave()
    with pytest.raises(Draining):
        admission.enter(CREATE)
