"""HPC-ColPali and beyond: page retrieval by compressed multi-vector embeddings."""
