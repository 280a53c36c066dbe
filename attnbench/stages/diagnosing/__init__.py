"""What is seen inside a trained model: `examples`, `watching`, `maps`, `measures`, `heard`, `inspection`."""
