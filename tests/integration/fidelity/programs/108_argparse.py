# args: --help
# args: --number 3 file
# args: --number three file
# args:
import argparse

parser = argparse.ArgumentParser(description="Reads its arguments.")
parser.add_argument("file")
parser.add_argument("--number", type=int, default=1)
print(parser.prog)
print(parser.parse_args())
