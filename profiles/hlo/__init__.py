"""Optimized programs as XLA prints them: their flow, collectives, moves and overlap.

May import `floor` and what that may import.
"""
