import logging
import sys

logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(module)s:%(lineno)d:%(message)s")
logging.info("to stderr")
logging.warning("with %s", "arguments")
logging.error("bad %d", "not a number")
print("out", flush=True)
handler = logging.StreamHandler(sys.stdout)
logging.getLogger().addHandler(handler)
logging.captureWarnings(True)
import warnings

warnings.warn("captured")
logging.shutdown()
