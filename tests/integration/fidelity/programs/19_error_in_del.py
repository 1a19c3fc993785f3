class Fragile:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<Fragile {self.name}>"

    def __del__(self):
        raise RuntimeError("in __del__ of " + self.name)


Fragile("first")
kept = Fragile("kept until the end")
print("end of the program", flush=True)
