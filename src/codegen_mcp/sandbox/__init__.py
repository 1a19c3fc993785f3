"""What confines code: backends, and one kernel feature a file."""
