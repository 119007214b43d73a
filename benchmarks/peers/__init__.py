"""The same gradient step by psgrad and by its peers on one machine: ``benchmarks/peers/run.py``.

==================  ============================================================================
``case``            what is measured: workers, bytes, steps
``contract``        what every system does and prints: gradients, check, times, one JSON line
``psgrad_step``     psgrad, in place or copied, through shared memory or by message
``mpi_allreduce``   ``MPI_Allreduce`` and a local update
``mpi_server``      a server in thirty lines of mpi4py, point to point
``torch_ddp``       PyTorch's DistributedDataParallel on gloo
``torch_rpc``       a parameter server by PyTorch's RPC (TensorPipe)
``ray_actors``      a parameter server of Ray actors
``memcpy``          a copy by one core: the rate that the limit is computed from
``systems``         the table of them all, and the command of each
``processes``       ranks that no ``mpiexec`` starts
``environments``    the virtual environments that they run in
``jobs``            a command under a limit of time, with all that it starts
``rounds``          who runs when; what came of it
``table``           the figures for a person
``plot``            their picture
==================  ============================================================================

A step is: each worker hands over a gradient of its own, of n float32; their mean is taken; the
parameters go down by the rate times it; each worker holds the new ones. Systems run one after
another, each in processes of its own, in rounds.
"""
