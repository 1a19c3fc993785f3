import this
from this import d

print(len(d))
