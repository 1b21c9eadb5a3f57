"""``python -m bench.overhead``: the same as ``cache-dit bench overhead``."""

import sys

from bench.application import main

if __name__ == "__main__":
    sys.exit(main(["overhead", *sys.argv[1:]]))
