print("a")
print("b")
raise ValueError("crlf")
