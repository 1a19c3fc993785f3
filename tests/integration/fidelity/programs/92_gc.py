import gc
import weakref

print(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.garbage, gc.callbacks)
print(gc.get_freeze_count() >= 0, len(gc.get_stats()))
events = []
gc.callbacks.append(lambda phase, info: events.append(phase))


class Node:
    pass


a, b = Node(), Node()
a.other, b.other = b, a
watch = weakref.ref(a)
del a, b
print(gc.collect() >= 2, watch(), events)
gc.callbacks.clear()


class Late:
    def __del__(self):
        print("collected late", gc.isenabled(), flush=True)


late = Late()
late.self = late
del late
gc.disable()
