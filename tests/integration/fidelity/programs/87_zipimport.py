import sys
import zipfile

with zipfile.ZipFile("library.zip", "w") as archive:
    for name, text in (
        ("zipped/__init__.py", "from .inner import f\n"),
        ("zipped/inner.py", "def f():\n    raise ValueError('in a zip')\n"),
    ):
        archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
sys.path.insert(0, "library.zip")
import zipped

print(zipped.__file__, type(zipped.__loader__))
zipped.f()
