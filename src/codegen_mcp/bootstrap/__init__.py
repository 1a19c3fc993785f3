"""All wiring: settings in, a running worker out.

``host`` finds what the machine gives, ``engine`` makes sessions and tasks of it, ``worker`` serves
them, ``serve`` adds signals and words for people.
"""

from codegen_mcp.bootstrap.engine import Engine, open_engine
from codegen_mcp.bootstrap.host import Host, open_host
from codegen_mcp.bootstrap.serve import serve
from codegen_mcp.bootstrap.store import open_checkpoint_store
from codegen_mcp.bootstrap.worker import Worker, open_worker

__all__ = [
    "Engine",
    "Host",
    "Worker",
    "open_checkpoint_store",
    "open_engine",
    "open_host",
    "open_worker",
    "serve",
]
