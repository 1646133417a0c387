"""What a run found: its records and document, the tables and files that hold them, and progress.

Imports nothing of the other rooms.
"""
