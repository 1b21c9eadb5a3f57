"""The cache under the names of the reference, for servers that subclass them. Each is imported when it is taken."""

import sys

from cache_dit.compat import PATHS, provide

provide(sys.modules[__name__], PATHS["caching"])
