"""Requests that join and leave a running batch: the engine of a service."""
