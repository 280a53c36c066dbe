"""Scoring sets of images: opening them, features kept by content, references, metrics, pictures."""
