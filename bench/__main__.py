"""``python -m bench``: the same as ``cache-dit bench``."""

import sys

from bench.commands import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m bench"))
