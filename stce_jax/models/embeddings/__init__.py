"""Image embeddings, one file each."""
