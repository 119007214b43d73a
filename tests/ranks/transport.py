"""Runs what is named of tests/transport_scenarios.py, one after the other, on real ranks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import transport_scenarios

import psgrad  # noqa: F401  (its hook takes the other ranks along)
from psgrad.transport.mpi import MpiTransport

for name in sys.argv[1:]:
    transport = MpiTransport()
    getattr(transport_scenarios, name)(transport)
    transport.close()
    print(name)
