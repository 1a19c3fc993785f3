def outer(value):
    return middle(
        value,
    )


def middle(value):
    return [inner(item) for item in value]


def inner(item):
    return 1 / item


print("before", flush=True)
outer([1, 0])
