"""Where the time of a measured step goes: by block of the model, each beside its own floor.

May import `measured`, `compiled` and what those may import.
"""
