"""The figures of arXiv:2601.13683, drawn from one's own runs: `attnbench figures`."""
