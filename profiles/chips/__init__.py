"""Chips and slices of them, published figures with their sources, and the devices that are here.

May import `report`.
"""
