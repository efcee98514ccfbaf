"""Functions of arrays without parameters: attention, embeddings, resizing."""
