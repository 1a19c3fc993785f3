# args: trace
# args: profile
# args: left
# args: left_profile
# args: threading
import sys
import threading

events = []


def tracer(frame, event, arg):
    events.append((event, frame.f_code.co_name, frame.f_lineno))
    if way in ("left", "left_profile") and event in ("call", "line", "return"):
        sys.stderr.write(f"{event} {frame.f_code.co_name} {frame.f_lineno}\n")
    return tracer


def work(n):
    return n + 1


way = sys.argv[1]
print(sys.gettrace(), sys.getprofile())
if way == "trace":
    sys.settrace(tracer)
    work(1)
    sys.settrace(None)
if way == "profile":
    sys.setprofile(tracer)
    work(len("a"))
    sys.setprofile(None)
if way == "left":
    sys.settrace(tracer)
    work(1)
if way == "left_profile":
    sys.setprofile(tracer)
    work(1)
if way == "threading":
    threading.settrace(tracer)
    thread = threading.Thread(target=work, args=(1,))
    thread.start()
    thread.join()
    events = [event for event in events if event[1] == "work"]
print(events)
