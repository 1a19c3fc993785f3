import atexit
import threading

gate = threading.Event()
file = open("from_thread.txt", "w")


def work():
    gate.wait()
    threading.main_thread().join()
    print("thread after main", threading.main_thread().is_alive(), flush=True)
    file.write("written after main ended\n")


atexit.register(print, "atexit comes after the threads", flush=True)
threading.Thread(target=work).start()
print("main ends", flush=True)
gate.set()
