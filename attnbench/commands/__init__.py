"""What a command does that is more than a call; `cli` only parses."""
