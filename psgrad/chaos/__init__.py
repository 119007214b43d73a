"""Real runs of real ranks, killed on purpose: do they end, and with the right result?

``trial`` draws what is to happen, ``victims`` does it to a run that goes on, ``judge`` says whether
what came of it is right, ``campaign`` goes through many of them.
"""

from __future__ import annotations
