"""Public test support: a worker in this process."""
