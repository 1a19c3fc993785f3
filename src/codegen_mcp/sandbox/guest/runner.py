"""Entry of a new interpreter: reads the run from a descriptor and behaves as the forked one."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the payload; never returns."""
    bare = frozenset(sys.modules) - {"__future__"}
    import marshal

    from program import Program

    class Place:
        guest, workspace, venv, site = os.path.dirname(sys.argv[0]), *sys.argv[2:5]
        site_packages = venv + "/" + site

    fd = int(sys.argv[1])
    kind, name, _, args, _, _, _, code = marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    os.close(fd)
    arguments = [os.fsdecode(arg) for arg in args]
    program = Program(Place, kind, os.fsdecode(name), arguments, code)  # type: ignore[arg-type]
    program.load()
    sys.path.remove(Place.guest)
    sys.path_importer_cache.pop(Place.guest, None)
    for own in sys.modules.keys() - bare:
        del sys.modules[own]
    program.run(sys.executable)


main()
