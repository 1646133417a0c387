"""Which slice, layout, batch and types serve a model at the least cost.

May import `expected` and what that may import.
"""
