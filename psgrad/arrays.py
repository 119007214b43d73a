"""Named views into one flat vector: how a worker sees its parameters and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgrad.errors import LayoutError, unknown_name
from psgrad.layout import Float32


class Arrays(MutableMapping[str, Float32]):
    """Named views into one flat vector.

    ``arrays[name]`` is the view itself; ``arrays[name] = value`` copies into it, so the memory
    stays the transport's. ``arrays(names)`` is the same for a subset.
    """

    def __init__(self, views: Mapping[str, Float32]) -> None:
        self._views = dict(views)

    def __call__(self, names: Iterable[str]) -> Arrays:
        return Arrays({name: self[name] for name in names})

    def __getitem__(self, name: str) -> Float32:
        try:
            return self._views[name]
        except KeyError:
            raise LayoutError(unknown_name("parameter", name, self._views)) from None

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        view = self[name]
        if type(value) is np.ndarray and (value.dtype, value.shape) == (view.dtype, view.shape):
            view[...] = value  # models have thousands of small tensors
            return
        if np.shape(value) != view.shape:
            raise LayoutError(f"{name!r} has shape {view.shape}, got {np.shape(value)}")
        dtype = np.asarray(value).dtype
        if not np.can_cast(dtype, view.dtype, casting="same_kind"):
            raise LayoutError(f"{name!r} takes real numbers, got {dtype}")
        np.copyto(view, value, casting="same_kind")

    def __delitem__(self, name: str) -> None:
        raise LayoutError(f"parameter {name!r} cannot be removed: the layout is fixed")

    def get(self, name: str, default: Any = None) -> Any:
        # Mapping's own waits for a KeyError.
        return self._views.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Arrays({', '.join(f'{n}{list(v.shape)}' for n, v in self._views.items())})"
