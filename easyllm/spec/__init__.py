"""The typed run spec, the one validator and the checks between fields.

Standard library only; everything above stands on it and nothing here knows the rooms above.
"""
