"""Published vocabularies of other formats as tokenizers in Hugging Face's format.

Each conversion is compared with the vocabulary's original library, and refused where it
gives other ids.
"""
