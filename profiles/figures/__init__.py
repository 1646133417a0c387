"""Pictures: of measured runs, of curves against batch, context and chips, of layouts and grids.

May import `expected` and what that may import.
"""
