"""What a step must cost, what it did cost, and the reports that hold one against the other."""
