import contextvars
import threading

variable = contextvars.ContextVar("variable", default="default")
print(list(contextvars.copy_context().items()), variable.get())
token = variable.set("changed")
context = contextvars.copy_context()
print(context.run(lambda: variable.set("inside") and variable.get()), variable.get())
variable.reset(token)
thread = threading.Thread(target=lambda: print("thread", variable.get()))
thread.start()
thread.join()


class Noisy:
    def __del__(self):
        print("value deleted", flush=True)


variable.set(Noisy())
print("end", flush=True)
