import os
import random
import secrets
import sys
import uuid

print(random.random() == random.random(), len({random.random() for _ in range(100)}))
print(len(os.urandom(8)), len(secrets.token_hex(4)), uuid.uuid4().version)
sys.stdout.flush()
if os.fork() == 0:
    print("the child's state differs", flush=True)
    os._exit(0)
os.wait()
random.seed("text")
print(random.getstate()[1][:3], random.randint(0, 10**9), random.gauss(0, 1))
