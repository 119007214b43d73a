"""``psgrad doctor``: what is wrong with the ranks, their nodes and the links between them.

Each rank gathers :class:`Facts`, rank 0 gets those of all, as JSON, and every check is a pure
function of them that returns a :class:`Finding`.
"""
