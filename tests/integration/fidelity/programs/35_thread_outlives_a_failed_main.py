import threading

gate = threading.Event()


def work():
    gate.wait()
    threading.main_thread().join()
    print("thread finishes", flush=True)


threading.Thread(target=work).start()
gate.set()
raise RuntimeError("main failed")
