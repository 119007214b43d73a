"""May these workers train together, with this much memory? Pure decisions, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psgrad.layout import Layout, assign, difference
from psgrad.options import Options
from psgrad.references import references_nbytes


def differing(registrations: Mapping[int, Layout | str]) -> str | None:
    """Why these workers cannot train together: the first reason, in words; None if they can.

    Each has sent its layout, or why it has none.
    """
    layouts: dict[int, Layout] = {}
    for worker, came in sorted(registrations.items()):
        if isinstance(came, str):
            return f"worker {worker}: {came}"
        layouts[worker] = came
    first, *others = layouts
    for worker in others:
        text = difference(layouts[first], layouts[worker])
        if text is not None:
            return (
                f"parameters differ between workers: worker {worker} {text}, as on worker {first}"
            )
    return None


def reference_memory(
    options: Options, layout: Layout, servers: int, workers: Iterable[int]
) -> tuple[str | None, str | None]:
    """What pulls that carry differences need: (an announcement, why it is refused).

    The same on every server, so that all of them refuse or none does.
    """
    codec, limit = options.compression.differences, options.reference_bytes
    if codec is None:
        return None, None
    chunks = layout.chunks(options.chunk_bytes)
    shared = options.staleness == 0
    nbytes = references_nbytes(layout, chunks, assign(chunks, servers), workers, shared)
    said = (
        f"pull codec {codec.name} keeps {'one copy' if shared else 'a copy for each worker'} of "
        f"the parameters as the workers have them: up to {nbytes} bytes on a server"
    )
    if nbytes <= limit:
        return said, None
    return said, (
        f"{said}; the limit reference_bytes is {limit}: use more servers, sync mode, a pull codec "
        "such as int8, or raise the limit"
    )
