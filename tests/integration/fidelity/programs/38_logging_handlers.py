import logging
import logging.handlers

target = logging.FileHandler("app.log", "w")
target.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
memory = logging.handlers.MemoryHandler(1000, logging.CRITICAL, target)
root = logging.getLogger()
root.setLevel(logging.DEBUG)
root.addHandler(memory)
logging.getLogger("a").info("kept in memory until the end")
logging.getLogger("a.b").debug("so is this")
delayed = logging.FileHandler("delayed.log", "w", delay=True)
logging.getLogger("delayed").addHandler(delayed)
logging.getLogger("delayed").warning("opened late")
plain = logging.getLogger("plain")
plain.propagate = False
plain.warning("last resort goes to stderr")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a").exception("failed")
