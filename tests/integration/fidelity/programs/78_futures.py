import concurrent.futures
import os


def work(n):
    if n == 3:
        raise ValueError("three")
    return n * n


def die():
    os._exit(9)


if __name__ == "__main__":
    for kind in (concurrent.futures.ThreadPoolExecutor, concurrent.futures.ProcessPoolExecutor):
        with kind(2) as pool:
            futures = [pool.submit(work, n) for n in range(5)]
            for future in futures:
                try:
                    print(future.result())
                except ValueError as error:
                    print(repr(error))
    pool = concurrent.futures.ProcessPoolExecutor(1)
    try:
        pool.submit(die).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        print(error)
    left = concurrent.futures.ThreadPoolExecutor(1)
    left.submit(print, "still done at the end", flush=True)
    print("main ends", flush=True)
