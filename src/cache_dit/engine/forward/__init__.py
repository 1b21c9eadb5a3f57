"""What happens in one forward over a chain of blocks."""
