"""What of the files of an earlier version (`tests/stored`) this one need not compute again."""

STILL_FINISHED = ["matrix.model.attention=[softmax]", "sample.noise=ziggurat"]
"""Overrides: softmax alone, as other attentions add up in another order since; with that version's noise."""
