"""What the tests of data files share: a file of given bytes, and the text of its refusal."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from psgrad.errors import DataError

# Examples may share the folder of a test: each writes the file that it reads.
fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(read, path, **options):
    """The text of the DataError, without the path in front."""
    with pytest.raises(DataError) as error:
        read(path, **options)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text[len(str(path)) :]
