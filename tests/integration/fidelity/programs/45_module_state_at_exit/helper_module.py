import atexit

FILE = open("helper.txt", "w")


class Watch:
    def __del__(self):
        print("helper's object deleted", flush=True)


WATCH = Watch()


def start(text):
    FILE.write(text)
    atexit.register(print, "helper's atexit", flush=True)
