"""A uniformly random order of all documents, out of core."""
