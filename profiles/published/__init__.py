"""Times, rates and contexts that others published, held against the floor and what is expected.

May import `expected` and what that may import.
"""
