"""SentencePiece's models as tokenizers of the package tokenizers, whatever file they come from."""
