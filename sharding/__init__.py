"""Meshes, axis names and partitioning layouts; nothing here knows what a transformer is."""
