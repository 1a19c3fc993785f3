"""Fixtures of all suites."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
import structlog

# A child that is forked to exec must not run gRPC's fork handlers: they abort it now and then.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from codegen_mcp.testing.s3_server import S3Server, shared_s3_server
from codegen_mcp.testing.worker import start_worker_process, state_directory

structlog.configure(
    # As workers log; with the values of local variables a traceback costs seconds.
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)

LONG = (
    "contract/test_sandbox.py",
    "security/test_attacks.py",
    "integration/test_checkpoints.py",
    "integration/test_checkpoint_stores.py",
    "integration/test_checkpoint_uploads.py",
    "integration/test_fork.py",
    "integration/test_artifacts.py",
    "integration/test_sessions.py",
    "e2e/test_examples.py",
    "integration/mcp/",
    "integration/packages/",
)
"""Files that take longest: begun first, so that none of them runs alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, in this order; all others keep theirs."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((n for n, part in enumerate(LONG) if f"tests/{part}" in path), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_worker() -> Iterator[str]:
    """Address of one real worker process for the tests that need no other than any worker."""
    with asyncio.Runner() as runner:
        directory = state_directory()
        state = runner.run(directory.__aenter__())
        worker = runner.run(start_worker_process(state, max_sessions=32, pool_size=2))
        try:
            yield worker.address
        finally:
            code = runner.run(worker.stop())
            runner.run(directory.__aexit__(None, None, None))
    assert code == 0


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for the whole run, also when several processes run it."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    with shared_s3_server(directory) as server:
        yield server
