"""Training rows: which documents, in which order, packed how."""
