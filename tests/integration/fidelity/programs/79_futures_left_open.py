import atexit
import concurrent.futures
import time

pool = concurrent.futures.ThreadPoolExecutor(2)
results = [pool.submit(lambda n=n: (time.sleep(0.01), print("task", n, flush=True))) for n in range(1)]
atexit.register(print, "atexit", flush=True)
