"""What is kept on the disk and how: whole files or none, locks, names, the store, run folders, the hub."""
