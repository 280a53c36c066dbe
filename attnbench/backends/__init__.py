"""Built-in attention backends, one file per variant; each is a plugin like a stranger's."""
