"""The trainer's part in checkpoints: its counts, and what other workers have left of the data."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate import simulated

from psgrad.checkpoint import Checkpoint, found
from psgrad.data import Batches, partition
from psgrad.data.partition import PARTITIONS
from psgrad.tally import Tally
from psgrad.trainer import Trainer
from psgrad.worker_state import WorkerState, unpack

# The data


def stored(cursor):
    """A cursor as it comes out of a checkpoint."""
    record = WorkerState.of({"x": cursor}, 1).record
    return unpack(json.loads(json.dumps(record)), lambda name: None)["x"]


class Labelled:
    """A data set, as far as it is dealt out."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_each_sample_of_each_epoch_once_whatever_the_workers_of_each_run(data):
    """Runs of N, M, K workers, each cut somewhere, with workers at places of their own."""
    n = data.draw(st.integers(1, 30), "samples")
    epochs = data.draw(st.integers(1, 4), "epochs")
    size = data.draw(st.integers(1, 8), "batch size")
    scheme = data.draw(st.sampled_from(PARTITIONS), "partition")
    numbers = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4), "workers of each run")
    samples = np.arange(50, 50 + n)
    labels = np.arange(80) % 3
    config = SimpleNamespace(
        dataset=SimpleNamespace(partition=scheme), seed=7, batch_size=size, epochs=epochs
    )
    loaded = SimpleNamespace(dataset=Labelled(labels), training=samples)
    cursors, seen = None, Counter()
    for run, workers in enumerate(numbers):
        shares = partition(labels, samples, workers, scheme, 7)
        everyone = [Batches(share, size, 7, w, epochs) for w, share in enumerate(shares)]
        for w, mine in enumerate(everyone):
            if cursors is None:
                continue
            if len(cursors) == workers:
                mine.load_state_dict(cursors[w])
            else:
                everyone[w] = Trainer._batches_of(
                    SimpleNamespace(
                        _config=config,
                        _data=loaded,
                        _worker=SimpleNamespace(size=workers),
                        _cursors=cursors,
                    ),
                    w,
                )
        last = run == len(numbers) - 1
        for mine in everyone:
            count = 10_000 if last else data.draw(st.integers(0, 20), "batches")
            for _, (epoch, batch) in zip(range(count), mine, strict=False):
                seen.update((epoch, int(i)) for i in batch)
        cursors = [stored(mine.state_dict()) for mine in everyone]
    assert seen == Counter({(epoch, int(i)): 1 for epoch in range(epochs) for i in samples})


def test_who_had_kept_nothing_had_done_nothing():
    config = SimpleNamespace(
        dataset=SimpleNamespace(partition="contiguous"), seed=7, batch_size=2, epochs=1
    )
    loaded = SimpleNamespace(dataset=Labelled(np.zeros(4)), training=np.arange(4))
    trainer = SimpleNamespace(
        _config=config,
        _data=loaded,
        _worker=SimpleNamespace(size=1),
        _cursors=[{"epoch": 1, "position": 0}, None],
    )
    assert sorted(Trainer._batches_of(trainer, 0).rest(0).tolist()) == [2, 3]


# The counts


def test_the_tally_goes_on():
    worker = SimpleNamespace(clock=0)
    tally = Tally(worker)
    assert tally.state_dict()["pushes"] == 0, "before the first step there is none to come"
    tally.add(10, 2.0, 0.5)
    assert tally.state_dict() == {
        "steps": 1, "samples": 10, "loss": 2.0, "accuracy": 0.5, "pushes": 1,
    }  # fmt: skip
    worker.clock = 1
    tally.add(20, 1.0, 1.0)
    assert tally.state_dict()["pushes"] == 2
    # It goes on at another clock, as one that had left does.
    again = Tally(SimpleNamespace(clock=7))
    again.load_state_dict(tally.state_dict())
    assert again.state_dict() == tally.state_dict()
    assert (again.pushes, again.samples, again.steps) == (2, 30, 2)
    again.add(5, 1.0, 1.0)
    assert again.loss == pytest.approx(0.9 * 1.9 + 0.1), "smoothed from where it was"


def test_what_several_have_counted_is_counted_once():
    tally = Tally(SimpleNamespace(clock=4))
    tally.merge([{"steps": 2, "samples": 20, "pushes": 1}, {"steps": 3, "samples": 5, "pushes": 3}])
    assert (tally.steps, tally.samples, tally.pushes) == (5, 25, 4)


# Whole trainings, in the simulator


def counted(summary):
    return summary["steps"], summary["skipped_steps"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--accumulate", 3, "--clip-norm", 0.5),
        ("--codec", "topk:0.05", "--pull-codec", "topk:0.1"),
        ("--set", "local_steps=3", "--optimizer", "momentum"),
        ("--set", "local_steps=4", "--codec", "int8"),
        ("--overlap", "on", "--optimizer", "adam"),
        ("--inject", "nan:rank=2,step=5"),
        ("--aggregate", "median"),
    ],
    ids=["plain", "accumulated", "codecs", "local momentum", "local codec", "overlap",
         "not finite", "median"],
)  # fmt: skip
def test_sync_training_ends_the_same_from_every_checkpoint(capsys, tmp_path, more):
    ranks, options = "workers=3,jitter=2", ("--mode", "sync", *more)
    if "--aggregate" in more:  # a round has to have all gradients
        options += ("--set", "dataset.test_fraction=0.2001", "--partition", "contiguous")
    whole, _ = simulated(capsys, tmp_path / "whole", ranks, *options)
    keep = ("--checkpoint-every", 3, "--keep", 100)
    cut, _ = simulated(capsys, tmp_path / "cut", ranks, *options, *keep)
    assert cut["params_sha256"] == whole["params_sha256"]
    paths = found(tmp_path / "cut" / "checkpoints")
    assert len(paths) >= 2
    for number, path in enumerate(paths):
        folder = tmp_path / f"on{number}"
        # A planted fault is of a rank, which is another worker where there are more servers.
        servers = ranks if "--inject" in more else f"{ranks},servers={1 + number % 2}"
        on, _ = simulated(capsys, folder, servers, *options, "--resume", path)
        assert on["params_sha256"] == whole["params_sha256"], path.name
        assert counted(on) == counted(whole)


@pytest.mark.parametrize("mode", ["sync", "ssp", "async"])
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--set", "local_steps=3"),
        ("--codec", "topk:0.05", "--partition", "by-label", "--overlap", "on"),
    ],
    ids=["plain", "local", "codec"],
)
def test_training_goes_on_with_other_numbers_of_workers(capsys, tmp_path, mode, more):
    """From 3 to 2 to 4 to 4 workers; each sample of each epoch counts once."""
    options = ["--mode", mode, *more, "--checkpoint-every", 2, "--keep", 100]
    options += ["--pace", "exponential:mean=0.01;slow:worker=1,factor=4"]
    simulated(capsys, tmp_path / "0", "workers=3", *options)
    folder = tmp_path / "0" / "checkpoints"
    samples = samples_of(tmp_path / "0")
    for number, workers in enumerate((2, 4, 4), start=1):
        paths = found(folder)
        path = paths[-1 - len(paths) // 4]  # the newest one is the first
        state = Checkpoint.open(path).manifest.state
        records = [record["kept"]["tally"] for record in state["worker_states"].values()]
        before = sum(record["samples"] for record in records)
        simulated(capsys, tmp_path / str(number), f"workers={workers}", *options, "--resume", path)
        folder = tmp_path / str(number) / "checkpoints"
        assert before + samples_of(tmp_path / str(number)) == samples


def samples_of(folder):
    """The samples of all steps of a run, as the last line of its summary says."""
    summary = json.loads((folder / "summary.json").read_text())
    return round(summary["samples_per_second"] * summary["seconds"])
