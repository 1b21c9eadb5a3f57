"""``cache-dit metrics``: its arguments, what it runs, and how it tells the results."""
