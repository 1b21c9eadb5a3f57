"""Where the blocks of a model are, and how they are called."""
