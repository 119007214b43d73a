"""Options, names and formats of data sets, and what load() gives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from psgrad.data import (
    DATASETS,
    DatasetOptions,
    SparseDataset,
    TextDataset,
    TokenDataset,
    load,
    split,
)
from psgrad.errors import ConfigError, DataError

CSV = "0.5,1,0\n2,3,1\n4,5,2\n"


@pytest.fixture(scope="session")
def real_data():
    """A folder of real data sets beside the checkout, where there is one."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "cvs"}, "unknown data format 'cvs'; did you mean 'csv'?"),
        ({"partition": "idd"}, "unknown partition 'idd'; did you mean 'iid'?"),
        ({"test_fraction": 0.0}, "test_fraction must be between 0 and 1, got 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1, got 1.0"),
        ({"test_fraction": float("nan")}, "test_fraction must be between 0 and 1, got nan"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"classes": -1}, "classes must be at least 2, or 0 to count them, got -1"),
        ({"classes": 1}, "classes must be at least 2, or 0 to count them, got 1"),
        ({"name": ""}, "dataset name is empty; give digits or a path"),
    ],
)
def test_options_out_of_range(change, text):
    with pytest.raises(ConfigError) as error:
        DatasetOptions(**change)
    assert str(error.value).startswith(text)


def test_options_are_json_values_and_frozen():
    options = DatasetOptions()
    assert DatasetOptions(**json.loads(json.dumps(dataclasses.asdict(options)))) == options
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.name = "other"


def test_digits_are_those_of_the_source():
    digits = load(DatasetOptions())
    assert (digits.name, len(digits), digits.features, digits.classes) == ("digits", 1797, 64, 10)
    x, labels = digits.batch(np.arange(1797))
    assert (x.dtype, labels.dtype) == (np.float32, np.int64)
    assert (x.min(), x.max()) == (0, 1)
    # The first digit of the source, a zero; and how often each digit is said to occur.
    assert (x[0, :8] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(labels, digits.labels)
    pixels = (x * 16).astype(np.uint8)
    digest = hashlib.sha256(pixels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_every_bundled_data_set_loads_and_has_a_page_on_its_source():
    folder = Path(load.__code__.co_filename).parent
    for name, bundled in DATASETS.items():
        assert load(DatasetOptions(name=name)).classes == bundled.classes
        page = folder.joinpath(bundled.file).with_suffix(".rst").read_text()
        assert "Source" in page
        assert "Licence" in page


@pytest.mark.parametrize(
    ("file", "kind"),
    [("a.csv", "auto"), ("A.CSV", "auto"), ("a.dat", "csv"), ("a.npz", "csv")],
)
def test_format_is_the_suffix_or_the_option(tmp_path, file, kind):
    path = tmp_path / file
    path.write_text(CSV)
    data = load(DatasetOptions(name=str(path), format=kind))
    assert (data.name, len(data), data.features, data.classes) == (file, 3, 2, 3)


@pytest.mark.parametrize("suffix", [".libsvm", ".svm", ".svmlight"])
def test_libsvm_suffixes(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("0 1:1\n1 2:1\n")
    assert isinstance(load(DatasetOptions(name=str(path))), SparseDataset)


def test_text_takes_the_context(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcab")
    data = load(DatasetOptions(name=str(path), context=2))
    assert isinstance(data, TextDataset)
    assert (len(data), data.features, data.classes) == (3, 6, 3)


def test_a_model_that_reads_tokens_says_how_many(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcab")
    data = load(DatasetOptions(name=str(path), context=2), window=3)
    assert isinstance(data, TokenDataset)
    assert (len(data), data.features, data.classes) == (1, 3, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digits", "this model reads text, and dataset digits is none; give it a .txt file"),
        ("a.csv", "this model reads text, and dataset a.csv is none; give it a .txt file"),
        ("a.dat", "cannot tell the data format of a.dat from its suffix"),
    ],
)
def test_tokens_are_of_text(tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    for file in ("a.csv", "a.dat"):
        Path(file).write_text(CSV)
    with pytest.raises(ConfigError, match=text):
        load(DatasetOptions(name=name), window=3)


@pytest.mark.parametrize(
    ("name", "kind", "error", "text"),
    [
        ("digts", "auto", ConfigError, "unknown dataset 'digts'; did you mean 'digits'? Known:"),
        ("digits", "csv", ConfigError, "data format 'csv' does not fit the bundled 'digits'"),
        ("none.csv", "auto", DataError, "data file none.csv does not exist; check the path"),
        ("no/folder", "auto", DataError, "data file no/folder does not exist; check the path"),
        ("a.dat", "auto", ConfigError, "cannot tell the data format of a.dat from its suffix"),
        ("folder.csv", "auto", DataError, "cannot read folder.csv: Is a directory; give"),
        ("folder.npz", "auto", DataError, "cannot read folder.npz: Is a directory; give"),
        ("folder.svm", "auto", DataError, "cannot read folder.svm: Is a directory; give"),
        ("one.csv", "auto", DataError, "one.csv: all 2 labels are the same; at least 2"),
    ],
)
def test_names_that_cannot_be_loaded(tmp_path, monkeypatch, name, kind, error, text):
    monkeypatch.chdir(tmp_path)
    Path("a.dat").write_text(CSV)
    Path("one.csv").write_text("1,0\n2,0\n")
    for suffix in ("csv", "npz", "svm"):
        Path(f"folder.{suffix}").mkdir()
    with pytest.raises(error) as raised:
        load(DatasetOptions(name=name, format=kind))
    assert str(raised.value).startswith(text)
    assert "\n" not in str(raised.value)


def test_a_bundled_name_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text(CSV)
    assert len(load(DatasetOptions(name="digits"))) == 1797
    assert len(load(DatasetOptions(name="./digits", format="csv"))) == 3


def test_classes_widen_the_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    assert load(DatasetOptions(name=str(path), classes=7)).classes == 7
    with pytest.raises(DataError, match=r"a\.csv:3: column 3: label 2 is out of range, .* is 1"):
        load(DatasetOptions(name=str(path), classes=2))


def test_agaricus(real_data):
    data = load(DatasetOptions(name=str(real_data / "agaricus.libsvm")))
    assert (len(data), data.features, data.classes) == (6513, 126, 2)
    x, labels = data.batch(np.array([0, 6512]))
    first = [3, 10, 11, 21, 30, 34, 36, 40, 41, 53, 58, 65, 69, 77, 86, 88, 92, 95, 102, 105]
    assert (np.flatnonzero(x[0]) + 1).tolist() == [*first, 117, 124]
    assert labels.tolist() == [1, 0]


def test_tinyshakespeare(real_data):
    data = load(DatasetOptions(name=str(real_data / "tinyshakespeare.txt"), context=5))
    assert (len(data), data.features, data.classes) == (1115394 - 5, 65 * 5, 65)
    assert data.ids.nbytes == data.ids.size
    x, label = data.batch(np.array([0]))
    window = "".join(data.vocabulary[i] for i in x.reshape(5, 65).argmax(axis=1))
    assert (window, data.vocabulary[label[0]]) == ("First", " ")
    train, test = split(data, 0.1, seed=0)
    assert test[0] == train.size
