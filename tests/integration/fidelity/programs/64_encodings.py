import locale
import os
import sys

print("äöü € 😀 \u200b", flush=True)
print(ascii(os.fsencode("ä")), sys.getfilesystemencoding())
print(locale.getpreferredencoding(), locale.getpreferredencoding(False), locale.getlocale())
print(locale.setlocale(locale.LC_ALL), locale.setlocale(locale.LC_CTYPE))
print(open("file.txt", "w").encoding, sys.flags.utf8_mode)
with open("ünïcode 😀.txt", "w") as file:
    file.write("ä")
with open(b"bytes-\xff\xfe", "w") as file:
    file.write("x")
print(ascii(sorted(os.listdir("."))), sorted(os.listdir(b".")))
