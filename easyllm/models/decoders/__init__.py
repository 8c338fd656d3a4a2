"""Any decoder that transformers knows, as its own class, cut into stages."""
