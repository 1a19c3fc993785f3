import warnings

warnings.simplefilter("always")
left = open("left.txt", "w")
left.write("x")


def inside():
    return left


print("end", flush=True)
