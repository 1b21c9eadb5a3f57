"""How a cached step is filled: weights for what computed steps left. Numbers, no tensors."""
