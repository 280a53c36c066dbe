"""Image-quality metrics: distances between feature sets, and the networks that make features."""
