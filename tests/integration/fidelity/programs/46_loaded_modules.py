import sys

print(sorted(sys.modules))
print(sys.builtin_module_names)
print(sys.meta_path)
print(sys.path_hooks)
