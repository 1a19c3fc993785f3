"""Python: interpreters, environments, packages."""
