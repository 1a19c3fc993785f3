"""One file a tool; registry.py says which."""
