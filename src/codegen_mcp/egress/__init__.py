"""The one way out of a sandbox: a proxy that connects to what is allowed, and to nothing else."""
