log = open("log.txt", "w")


def step(n):
    local = open(f"step{n}.txt", "w")
    local.write(f"step {n}\n")
    log.write(f"{n}\n")
    if n == 3:
        raise RuntimeError("stopped at 3")
    step(n + 1)


step(1)
