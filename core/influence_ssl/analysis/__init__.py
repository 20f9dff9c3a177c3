"""What scores and representations show: duplicates, neighbours, reliability, shares of labels."""
