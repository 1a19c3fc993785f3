import threading
import time

started = threading.Event()


def forever():
    started.set()
    while True:
        time.sleep(3600)


for number in range(3):
    threading.Thread(target=forever, daemon=True, name=f"daemon-{number}").start()
started.wait()
print("main ends", threading.active_count())
