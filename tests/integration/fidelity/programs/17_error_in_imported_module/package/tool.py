def run(value):
    return value.upper()
