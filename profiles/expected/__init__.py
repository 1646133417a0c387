"""The time that a pass is expected to take, the choice of a layout by it, and what follows in cost.

May import `floor` and what that may import.
"""
