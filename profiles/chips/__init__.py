"""Chips and slices of them, published figures with their sources, and the devices of this run.

May import `report`.
"""
