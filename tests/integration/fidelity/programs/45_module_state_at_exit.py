import helper_module

helper_module.start("from main")
print("end", flush=True)
