"""Sessions that calls make by themselves, where a caller named none and has no connection.

Whoever calls the gateway asks for one with this key in the metadata of CreateSession. The gateway
marks its row ``adhoc`` and takes the key out: such sessions count as one against their principal's
quota, and are the first to go (saved, where changed) when there is no room.
"""

ADHOC_KEY = "codegen.adhoc"
"""In CreateSessionRequest.metadata; its value is ``"1"``."""
ADHOC_IDLE_S = 60
"""``config.idle_timeout_seconds`` that comes with it."""
