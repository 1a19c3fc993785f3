import dis
import inspect
import io
import linecache
import sys
import traceback


def documented(a, b: int = 2, *args, key=None, **rest) -> str:
    """Say what it does."""
    return traceback.format_stack()


class Thing:
    def method(self):
        return [(frame.function, frame.lineno, frame.filename) for frame in inspect.stack()]


print(inspect.getsource(documented))
print(inspect.signature(documented), inspect.getdoc(documented), inspect.getfile(Thing))
print("".join(documented(1)), Thing().method())
print(inspect.getsourcelines(Thing), inspect.getmodule(Thing), inspect.getsourcefile(Thing))
print(linecache.getline(__file__, 1), len(inspect.stack()), inspect.currentframe().f_back)
frame = sys._getframe()
print(frame.f_code.co_name, frame.f_code.co_filename, frame.f_globals is globals())
print(frame.f_locals is globals(), frame.f_lineno, frame.f_trace, frame.f_code.co_flags)
try:
    sys._getframe(1)
except ValueError as error:
    print(error)
out = io.StringIO()
dis.dis(documented, file=out)
print(out.getvalue())
traceback.print_stack()
print(traceback.extract_stack())
