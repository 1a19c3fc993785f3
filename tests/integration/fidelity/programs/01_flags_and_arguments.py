# args: one --two three=3 "four"
import sys

print(sys.flags)
print(sys.argv)
print(getattr(sys, "orig_argv", None))
print(sys.executable, sys._base_executable)
print(sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
print(sys.path)
print(sys.warnoptions, sys._xoptions)
print(sys.dont_write_bytecode, sys.pycache_prefix)
print(sys.byteorder, sys.platform, sys.version)
print(sys.getrecursionlimit(), sys.getswitchinterval(), sys.getdefaultencoding())
print(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
print(sys.hash_info, sys.float_info, sys.thread_info)
