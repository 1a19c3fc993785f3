def fail(kind, text):
    raise kind(text)


errors = []
for kind in (ValueError, TypeError):
    try:
        fail(kind, kind.__name__ + " text")
    except Exception as error:
        errors.append(error)
try:
    raise ExceptionGroup("inner", errors)
except ExceptionGroup as inner:
    raise ExceptionGroup("outer", [inner, KeyError("k")]) from errors[0]
