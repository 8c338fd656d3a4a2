"""The typed run spec, the one validator and the checks between fields.

It imports the standard library only, and no other package of easyllm; all of them may import it.
"""
