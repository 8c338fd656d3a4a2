"""vLLM as an engine, and the model classes that it lacks."""
