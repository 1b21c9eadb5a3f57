"""A schedule with its weights, what it holds for, and its file. Numbers, no tensors."""
