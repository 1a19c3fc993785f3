"""What tests of a whole worker share."""

import pytest

from codegen_mcp.testing.driven import why_no_kernel_limits


@pytest.fixture(scope="session")
def kernel_limits() -> None:
    """Skip where the kernel cannot limit sessions, with the probe's reason."""
    if reason := why_no_kernel_limits():
        pytest.skip(reason)
