import os
import threading
import time
import warnings

warnings.simplefilter("ignore", DeprecationWarning)  # names the process id
lock = threading.Lock()
started = threading.Event()


def hold():
    with lock:
        started.set()
        time.sleep(0.05)


thread = threading.Thread(target=hold)
thread.start()
started.wait()
pid = os.fork()
if pid == 0:
    print(threading.active_count(), threading.current_thread().name, lock.locked(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
thread.join()
condition = threading.Condition()
barrier = threading.Barrier(3)
total = []


def add():
    barrier.wait()
    with condition:
        total.append(1)
        condition.notify_all()


threads = [threading.Thread(target=add) for _ in range(2)]
for thread in threads:
    thread.start()
barrier.wait()
with condition:
    condition.wait_for(lambda: len(total) == 2)
print(total, threading.get_native_id() == os.getpid())
