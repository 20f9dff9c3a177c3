"""The ``influence-ssl`` command, one module per sub-command."""
