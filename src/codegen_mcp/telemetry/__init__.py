"""Metrics and logs, one small file each."""
