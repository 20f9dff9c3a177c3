"""Analyses of scores and representations: duplicates, neighbours, reliability, label shares."""
