"""What the compiler makes of a pass, on devices that are here or that nobody here owns.

May import `expected`, `hlo` and what those may import.
"""
