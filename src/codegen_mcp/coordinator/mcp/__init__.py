"""The face for agents: MCP tools and resources over the gateway.

``server.py`` makes the protocol server, ``catalogue.py`` says which tools there are, one file a
family of tools has the handlers. Nothing here knows a worker: only the gateway's port.
"""
