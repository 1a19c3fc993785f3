"""Artifacts: files that outlive the session which made them."""
