import subprocess
import sys
import warnings

for _ in range(3):
    warnings.warn("shown once a place")
warnings.warn("too deep", stacklevel=5)


def deprecated():
    warnings.warn("deprecated", DeprecationWarning, stacklevel=2)


deprecated()
warnings.warn("ignored", ImportWarning)
print(warnings.filters)
print(sorted(key for key in globals() if "warning" in key))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    warnings.warn("recorded", ResourceWarning)
    print([str(one.message) for one in caught])
value = 1
value is 1
"\d"
assert (value, "always true")
warnings.simplefilter("default")
open("left_open.txt", "w")
print("after", flush=True)
warnings.filterwarnings("error", category=UserWarning)
warnings.warn("now an error")
