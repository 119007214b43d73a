"""Runs what is named of tests/transport_scenarios.py, one after the other, on real ranks; or one of
tests/transport_losses.py, whose victim is killed."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import transport_losses
import transport_scenarios

import psgrad  # noqa: F401  (its hook takes the other ranks along)
from psgrad.transport.mpi import MpiTransport

for name in sys.argv[1:]:
    transport = MpiTransport()
    transport_losses.die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    found = getattr(transport_scenarios, name, None) or transport_losses.LOSSES[name]
    found(transport)
    transport.close()
    print(name)
