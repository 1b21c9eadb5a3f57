"""The networks that some metrics measure with: where they are found, what they are, and how LPIPS' are fetched."""
