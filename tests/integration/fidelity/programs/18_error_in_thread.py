import threading


def work(n):
    if n:
        work(n - 1)
    else:
        raise ValueError("in a thread")


thread = threading.Thread(target=work, args=(3,), name="worker-thread")
thread.start()
thread.join()
print("main goes on")
quiet = threading.Thread(target=lambda: (_ for _ in ()).throw(SystemExit(9)), name="quiet")
quiet.start()
quiet.join()
