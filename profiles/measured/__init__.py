"""Decode steps timed on the devices that are here, their traces, and peers timed beside them.

May import `hlo` and what that may import.
"""
