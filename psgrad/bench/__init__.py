"""Measurements for people: ``psgrad bench``.

=============  =================================================================================
``codec``      what each codec costs and loses, in one process
``step``       a step of all ranks beside ``MPI_Allreduce`` and a copy, by size
``latency``    the shortest step, beside a bare exchange of the same bytes
``memory``     what memory gives on this machine, and what ranks take of it
``tune``       which chunk size a machine likes
=============  =================================================================================

``step``, ``latency`` and ``tune`` have a plan, a frozen value that is equal on all ranks, and a
function that every rank calls with it; the rank of worker 0 gets the figures. What is compared is
measured in turn in one run, so that ratios hold although the machine is busy. Arithmetic and
layout of tables are pure functions.
"""
