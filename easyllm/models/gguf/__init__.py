"""GGUF, the format of llama.cpp: models and tokenizers read from its files, and written to them.

The facts of the format are those of llama.cpp (``src/llama-vocab.cpp``, ``conversion/``) as
llama-cpp-python 0.3.36 ships it, and of the gguf package 0.19.
"""

CONVERSION = 2
"""Increased when the same file would be converted into another model or other token ids. Folders
made before are then made again, and token stores made with their tokenizers are refused."""
