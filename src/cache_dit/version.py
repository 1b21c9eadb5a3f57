"""Which version this is, and with which API of the reference."""

__version__ = "2.0.0.dev0"
version_tuple = (2, 0, 0, "dev0")
REFERENCE_API = "1.2.0"
"""The version of the package cache-dit of which this one has the public names, with their arguments."""
