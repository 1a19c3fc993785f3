# args: SIGTERM
# args: SIGKILL
# args: SIGABRT
# args: SIGHUP
# args: SIGUSR1
# args: SIGALRM
# args: SIGINT
# args: SIGPIPE
# args: SIGXFSZ
# args: SIGSEGV
import os
import signal
import sys

print("before", flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
print("after", flush=True)
