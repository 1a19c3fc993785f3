import multiprocessing
import time


def forever():
    time.sleep(1000)


def soon(path):
    with open(path, "w") as file:
        file.write("waited for\n")


if __name__ == "__main__":
    multiprocessing.Process(target=forever, daemon=True).start()
    multiprocessing.Process(target=soon, args=("soon.txt",)).start()
    print("main ends")
