"""Who is what: ranks 0 to S-1 are servers, rank 0 is also the coordinator, the rest are workers.

The last ranks may be spares, which take the places of workers that are lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from psgrad.errors import ConfigError


@dataclass(frozen=True)
class Roles:
    """The roles of ``size`` ranks with ``servers`` servers.

    A worker's index counts from 0 whatever the number of servers; it is never the MPI rank.
    """

    size: int
    servers: int
    hosts: tuple[str, ...] = ()
    """The name of each rank's machine; empty as long as nobody has asked."""
    spares: int = 0
    """How many ranks, the last ones, are no workers at the start."""

    def __post_init__(self) -> None:
        if self.size == 1:
            raise ConfigError(
                "psgrad needs at least 2 ranks (a server and a worker), this job has 1; "
                "start it under MPI: psgrad run --np 4 -- ..., or mpirun -n 4 ..."
            )
        if not 1 <= self.servers < self.size:
            raise ConfigError(
                f"servers must be from 1 to {self.size - 1} with {self.size} ranks, "
                f"got {self.servers}; use --servers 1 or start more ranks"
            )
        if not 0 <= self.spares < self.size - self.servers:
            raise ConfigError(
                f"spares must be from 0 to {self.size - self.servers - 1} with {self.size} ranks "
                f"and servers {self.servers}, got {self.spares}; start more ranks"
            )

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self.size - self.servers - self.spares

    @property
    def server_ranks(self) -> range:
        """Ranks of the servers."""
        return range(self.servers)

    @property
    def worker_ranks(self) -> range:
        """Ranks of the workers, in the order of their indices."""
        return range(self.servers, self.size - self.spares)

    @property
    def spare_ranks(self) -> range:
        """Ranks of the spares."""
        return range(self.size - self.spares, self.size)

    def is_server(self, rank: int) -> bool:
        """Whether ``rank`` holds parameters."""
        return rank < self.servers

    def rank_of(self, worker: int) -> int:
        """The rank of worker index ``worker`` at the start of a run."""
        return self.servers + worker

    def worker_of(self, rank: int) -> int:
        """The worker index of ``rank`` at the start of a run."""
        return rank - self.servers

    def same_node(self, rank: int, other: int) -> bool:
        """Whether a message from ``rank`` to ``other`` stays in the memory of one machine."""
        return not self.hosts or self.hosts[rank] == self.hosts[other]

    def servers_beside(self, rank: int) -> list[int]:
        """The servers on the machine of ``rank``."""
        return [server for server in self.server_ranks if self.same_node(server, rank)]

    def place_on_node(self, rank: int) -> int:
        """How many workers before ``rank`` are on its machine; it takes the GPU of that number."""
        return sum(self.same_node(other, rank) for other in range(self.servers, rank))

    def host(self, rank: int) -> str:
        """The name of the machine of ``rank``, if that is known."""
        return self.hosts[rank] if self.hosts else "host unknown"

    def name(self, rank: int) -> str:
        """The role of ``rank`` in words."""
        if rank == 0:
            return "coordinator"
        if self.is_server(rank):
            return "server"
        return "spare" if rank in self.spare_ranks else "worker"
