"""Made-up rows: what source `generate` sends, as pure functions of a seed and a row's number.

`draws` gives the randomness, `columns` makes Arrow arrays of it, `shapes` and `declared` say which columns
there are, and `generator` puts rows together and spoils the ones that are to be bad.
"""
