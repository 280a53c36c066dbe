"""`python -m attnbench.cli`."""

from attnbench.cli import command

command()
