import cProfile
import io
import pstats
import timeit
import trace
import tracemalloc


def work():
    return sorted(range(100))


profile = cProfile.Profile()
profile.runcall(work)
out = io.StringIO()
pstats.Stats(profile, stream=out).strip_dirs().sort_stats("name").print_stats()
print(len([line for line in out.getvalue().splitlines() if "work" in line]))
cProfile.run("work()", "profile.out")
print(sorted(key[2] for key in pstats.Stats("profile.out").stats))
import os

os.remove("profile.out")
print(timeit.timeit("work()", globals=globals(), number=3) > 0)
tracemalloc.start(5)
kept = [bytes(1000) for _ in range(3)]
snapshot = tracemalloc.take_snapshot()
for stat in snapshot.filter_traces([tracemalloc.Filter(True, __file__)]).statistics("traceback"):
    print([(frame.filename, frame.lineno) for frame in stat.traceback])
tracer = trace.Trace(count=1, trace=0)
tracer.runfunc(work)
print(sorted(key[1] for key in tracer.results().counts if key[0] == __file__))
