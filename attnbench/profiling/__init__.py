"""What a model costs: parameters, multiply-adds, latency and memory.

Nothing is imported here: a measuring child loads this package, and needs little of it.
"""
