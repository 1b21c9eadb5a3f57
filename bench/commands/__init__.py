"""The benches: each a file with a ``COMMAND``. They import what they need when they run, not before."""
