"""What `attnbench run` and `attnbench plan` do with the cases of a suite."""
