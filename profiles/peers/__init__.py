"""Other engines timed beside this one, each in a process of its own, in rounds that alternate.

May import `report` and what that may import.
"""
