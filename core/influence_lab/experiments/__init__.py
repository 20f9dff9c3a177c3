"""One module per experiment, which measures, records a result and draws.

Each has ``reproduce(task)``, which writes its record under ``task.root`` (see
:mod:`influence_lab.records.results`), draws a figure to ``task.out`` if it has one, and returns one
line for the terminal. Experiments that test claims of the paper also have ``claims(root)``.
"""
