"""Tests of what only a stock kernel has; ``./dev test --vm`` runs them in a virtual machine."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("CODEGEN_TEST_VM") else ["test_*.py"]
