"""The claims of arXiv:2601.13683 as a checklist, tested on whatever runs there are."""
