"""The rows of the table: one file a family, found by itself, with its ``ROWS``: class name to ``Tiny``."""
