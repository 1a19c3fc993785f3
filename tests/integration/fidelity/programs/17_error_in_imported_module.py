# args: runtime
# args: syntax
# args: missing
# args: name
# args: circular
# args: attribute
import sys

import package

if sys.argv[1] == "runtime":
    import package.broken
if sys.argv[1] == "syntax":
    import package.unparsable
if sys.argv[1] == "missing":
    import package.nowhere
if sys.argv[1] == "name":
    from package import nothing
if sys.argv[1] == "circular":
    import package.circle_a
if sys.argv[1] == "attribute":
    package.tool.run(None)
