"""Prefill, decode steps, sampling and text."""
