"""Decode steps timed on the devices that are here, and their traces.

May import `hlo` and what that may import.
"""
