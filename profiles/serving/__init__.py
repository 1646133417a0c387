"""A service measured as requests arrive, beside what it would be if every step were full."""
