import json
import random

print(json.MARK, random.MARK)
import logging

print(hasattr(logging, "getLogger"), logging.MARK)
