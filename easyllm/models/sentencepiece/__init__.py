"""SentencePiece models as tokenizers of the package tokenizers, from any kind of file."""
