"""How a job will scale: a model of what messages and arithmetic cost, without either.

``study`` is the command, ``model`` says what is modelled, ``flow`` plays it, and ``calibrate``
measures a machine for it.
"""
