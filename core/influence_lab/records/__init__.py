"""Recorded runs, scores and vectors under ``book/results``, and the code that creates them."""
