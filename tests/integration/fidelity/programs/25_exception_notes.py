class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")


try:
    error = ValueError("with notes")
    error.add_note("first note")
    error.add_note("second note\nof two lines")
    raise error
except ValueError as caught:
    caught.add_note("third note")
    try:
        raise Odd from caught
    except Odd:
        raise
