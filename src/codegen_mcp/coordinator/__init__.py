"""One address for many workers: principals, routing, and the agents' face (MCP)."""
