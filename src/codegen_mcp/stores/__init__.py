"""Object stores for checkpoints and artifacts."""
