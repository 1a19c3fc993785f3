"""Where a session's bytes lie, and what bounds them."""
