"""Everything that only the reproduction of the paper needs, beyond ``influence_ssl``."""
