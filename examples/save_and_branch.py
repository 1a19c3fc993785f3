"""Save a session, spoil it, come back, and try two ways from the same point.

Needs a worker (./dev run). CODEGEN_MCP_ADDRESS names another one than the default.
"""

from codegen_mcp.client import Sandbox

with Sandbox.create() as sandbox:
    sandbox.files.write("model.txt", "weights 1.0\n")
    saved = sandbox.checkpoint("good")
    print(f"saved {saved.size_bytes} bytes in full" if not saved.parent_id else "saved a change")

    sandbox.run_python("open('model.txt', 'w').write('garbage')")
    restored = sandbox.restore(saved.checkpoint_id)
    print("back to:", sandbox.files.read("model.txt").strip())
    print("lost:", restored.lost)

    left, right = sandbox.fork(2)
    with left, right:
        left.run_python("open('model.txt', 'a').write('plus A\\n')")
        right.run_python("open('model.txt', 'a').write('plus B\\n')")
        for one in (left, right):
            print(one.files.read("model.txt").splitlines()[-1])
    print("the first is as it was:", sandbox.files.read("model.txt").strip())
