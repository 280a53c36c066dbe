"""`python -m attnbench.cli`."""

from attnbench.cli import main

main()
