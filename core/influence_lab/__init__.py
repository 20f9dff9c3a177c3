"""What regenerating the paper needs and a user of ``influence_ssl`` does not."""
