import sys
import weakref


class Thing:
    pass


def say(*words):
    print(*words, flush=True)


first, second, third = Thing(), Thing(), Thing()
weakref.finalize(first, say, "first is finalized at the end")
weakref.finalize(second, say, "second is deleted early")
no = weakref.finalize(third, say, "never")
no.atexit = False
fails = weakref.finalize(third, lambda: 1 / 0)
watched = weakref.ref(second, lambda ref: say("callback"))
del second
say("end of main", watched() is None)
