"""What only a machine with a card can show, in parts that fit into a few minutes each.

``python -m influence_lab.gpu run PART`` needs PyTorch, NumPy and this source tree, and neither an
installation nor a network: what else is missing comes as wheels (:mod:`.packages`). A part is a
list of steps (:mod:`.steps`), in the order of what they are worth. Each result is written when it
is there, a second call goes on where the first one stopped, and :mod:`.packing` keeps what is
brought back to a few files of limited size. :mod:`.sizes` holds the only differences between a run
in full and one in miniature.
"""
