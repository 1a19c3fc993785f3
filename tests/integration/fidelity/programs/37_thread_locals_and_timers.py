import threading

local = threading.local()
local.value = "main"
seen = []


def look():
    seen.append(getattr(local, "value", "absent"))


timer = threading.Timer(0.01, look)
timer.start()
timer.join()
print(seen, threading.current_thread().name, threading.main_thread().name)
print(threading.main_thread() is threading.current_thread(), threading.active_count())
print(threading.main_thread().ident == threading.get_ident())
print([thread.name for thread in threading.enumerate()])
