import atexit


def say(*words, end="."):
    print(*words, end=end + "\n", flush=True)


def late():
    say("late registers another")
    atexit.register(say, "registered during the end")


atexit.register(say, "one")
atexit.register(say, "two", end="!")
atexit.register(late)
atexit.register(say, "gone")
atexit.register(say, "three", "words")
gone = say
handle = atexit.register(print, "never")
atexit.unregister(print)
print(atexit._ncallbacks())
