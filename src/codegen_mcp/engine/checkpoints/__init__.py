"""Checkpoints: save, verify, restore and branch sessions."""
