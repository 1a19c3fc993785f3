def load():
    raise RuntimeError("while importing")


load()
