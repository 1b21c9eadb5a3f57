"""The report: what the benches found, as a page for people."""
