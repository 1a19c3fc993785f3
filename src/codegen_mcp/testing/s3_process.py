"""The program of ``s3_server.py``: all of Swift's servers in one process, with its S3 interface.

Arguments: an empty directory, on a file system with user xattrs, and the number of the process
that starts it (it dies with that one). Says ``listening on <port>`` when it serves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

BUCKET = "codegen"
ACCESS_KEY_ID = "test:tester"
SECRET_ACCESS_KEY = "testing-secret"
_PR_SET_PDEATHSIG = 1

_SWIFT = """
[swift-hash]
swift_hash_path_suffix = codegen
[storage-policy:0]
name = only
default = yes
[swift-constraints]
max_file_size = 5368709122
"""
_COMMON = """
[DEFAULT]
swift_dir = {base}
devices = {base}/devices
mount_check = false
disable_fallocate = true
log_address = {base}/no-log
log_udp_host =
workers = 0
"""
_STORAGE = """
[app:main]
use = egg:swift#{kind}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors healthcheck cache listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 30
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = 1
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


def main() -> None:
    """Serve until killed."""
    base, starter = Path(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != starter:
        return
    os.environ["TZ"] = "UTC+0"
    import eventlet
    import eventlet.debug
    from swift.common.utils import eventlet_monkey_patch, set_swift_dir

    eventlet_monkey_patch()
    forgo_durability()
    eventlet.debug.hub_exceptions(False)
    write_settings(base)
    set_swift_dir(str(base))

    from eventlet import wsgi
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.utils import NullLogger
    from swift.common.wsgi import loadapp, make_pre_authed_request

    def serve(kind: str, listener: socket.socket) -> Any:
        app = loadapp(str(base / f"{kind}.conf"), global_conf={"log_name": kind})
        if kind == "object":
            app = one_put_at_a_time(app)
        options = {"protocol": SwiftHttpProtocol, "capitalize_response_headers": False}
        eventlet.spawn(wsgi.server, listener, app, NullLogger(), **options)
        return app

    for kind in ("account", "container", "object"):
        listener = eventlet.listen(("127.0.0.1", 0))
        write_ring(base, kind, listener.getsockname()[1])
        serve(kind, listener)
    front = eventlet.listen(("127.0.0.1", 0), backlog=256)
    proxy = serve("proxy", front)
    account = "/v1/AUTH_" + ACCESS_KEY_ID.partition(":")[0]
    made = make_pre_authed_request({}, "PUT", f"{account}/{BUCKET}").get_response(proxy)
    if not made.is_success:
        raise SystemExit(f"the bucket could not be made: {made.status}")
    sys.stdout.write(f"listening on {front.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        eventlet.sleep(3600)


def forgo_durability() -> None:
    """Sync nothing: it all ends with the tests, and their own disk work would slow it down."""
    from swift.common import db

    connect = db.get_db_connection

    def quick(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def nothing(fd: Any) -> None:
        pass

    db.get_db_connection = quick
    os.fsync = os.fdatasync = nothing


def one_put_at_a_time(app: Any) -> Any:
    """Make ``If-None-Match: *`` hold between writers of one object, as Amazon documents it.

    Swift looks when a PUT begins and writes when it ends: of two at once both would be told that
    they created it.
    """
    from eventlet.semaphore import Semaphore

    under_way: defaultdict[str, Any] = defaultdict(Semaphore)

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return app(environ, start_response)
        with under_way[environ["PATH_INFO"]]:
            return list(app(environ, start_response))

    return serve


def write_settings(base: Path) -> None:
    """Write every server's settings."""
    user = ACCESS_KEY_ID.replace(":", "_")
    (base / "devices/disk").mkdir(parents=True)
    (base / "swift.conf").write_text(_SWIFT)
    common = _COMMON.format(base=base)
    for kind in ("account", "container", "object"):
        (base / f"{kind}.conf").write_text(common + _STORAGE.format(kind=kind))
    (base / "proxy.conf").write_text(common + _PROXY.format(user=user, secret=SECRET_ACCESS_KEY))


def write_ring(base: Path, kind: str, port: int) -> None:
    """Say where the one server of a kind is."""
    from swift.common.ring import RingBuilder

    builder = RingBuilder(4, 1, 0)
    disk = {"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port}
    builder.add_dev({**disk, "device": "disk", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(str(base / f"{kind}.ring.gz"))


if __name__ == "__main__":
    main()
