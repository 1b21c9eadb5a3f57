"""What is kept of computed steps, and the arithmetic on it."""
