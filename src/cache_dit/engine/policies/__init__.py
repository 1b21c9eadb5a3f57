"""When to compute. Numbers, no tensors."""
