"""What is recorded: runs, scores and vectors under ``book/results``, and what makes them."""
