"""The tables of arXiv:2601.13683: what is printed there, which case is which row, and both together."""
