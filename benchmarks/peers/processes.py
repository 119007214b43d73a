"""Ranks that are plain processes, for systems that no ``mpiexec`` starts."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")


def on_ranks(ranks: int, main: Callable[..., T], *arguments: Any) -> list[T]:
    """What ``main(rank, *arguments)`` returns in each of ``ranks`` new processes, by rank.

    If one raises, its traceback is printed and this process ends at once with status 1: the others
    wait for it. Whoever started this program ends them.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        futures = [pool.submit(main, rank, *arguments) for rank in range(ranks)]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            error = future.exception()
            if error is not None:
                traceback.print_exception(error)
                sys.stderr.flush()
                os._exit(1)
        return [future.result() for future in futures]
