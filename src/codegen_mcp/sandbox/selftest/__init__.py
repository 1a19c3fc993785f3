"""Attacks on a running sandbox, as data: what users run to see that the walls hold."""
