"""Encoders by name or from files, with their weights and their preprocessing."""
