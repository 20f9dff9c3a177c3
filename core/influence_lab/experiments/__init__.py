"""One module per experiment: it measures, writes a recorded result, and draws.

Each has ``reproduce(task)``, which writes its record under ``task.root`` (see
:mod:`influence_lab.records.results`), draws a figure to ``task.out`` where it has one, and returns
one line for the terminal. One that tests claims of the paper has ``claims(root)`` as well.
"""
