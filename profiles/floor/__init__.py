"""The least time of a pass: bytes, FLOPs and collectives, counted from the model and its layout.

May import `report` and `chips`.
"""
