import os
import signal
import sys
import time

seen = []


def handler(number, frame):
    seen.append((signal.Signals(number).name, frame.f_code.co_name))


for name in ("SIGUSR1", "SIGTERM", "SIGALRM", "SIGHUP"):
    signal.signal(getattr(signal, name), handler)
    if name != "SIGALRM":
        os.kill(os.getpid(), getattr(signal, name))
signal.setitimer(signal.ITIMER_REAL, 0.01)
while len(seen) < 4:
    time.sleep(0.001)
print(seen)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.raise_signal(signal.SIGALRM)


class Stop(Exception):
    pass


def stop(number, frame):
    raise Stop(number)


signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.01)
try:
    time.sleep(100)
except Stop as error:
    print("stopped", error)
signal.siginterrupt(signal.SIGUSR1, False)
signal.signal(signal.SIGUSR1, lambda *args: sys.exit(21))
os.kill(os.getpid(), signal.SIGUSR1)
time.sleep(1)
