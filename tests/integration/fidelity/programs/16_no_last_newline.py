print("no newline at the end")
if 1:
    1 / 0