"""The linear network of the theory: closed forms, symbols, instances, the ledger."""
