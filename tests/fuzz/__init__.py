"""Inputs that nobody would send, by the million, into everything that reads bytes from outside.

``bin/fuzz --inputs N --seed S``. ``mutate`` makes an input of a valid sample, ``targets`` lists who
reads it, ``engine`` looks at what comes out of that: a ``PsgradError``, or nothing at all.
"""
