"""The trainer without a parameter server: one process, one plain loop over whole arrays."""

from __future__ import annotations

import hashlib

import numpy as np

from psgrad.compute import load_data
from psgrad.data import Batches, partition
from psgrad.kernels import cpu
from psgrad.roles import Roles


class Twin:
    """Synchronous training with ``workers`` workers, their gradients computed one by one."""

    def __init__(self, config, workers):
        self.config = config
        loaded = load_data(config, Roles(workers + 1, 1), 1)
        labels, scheme = loaded.dataset.labels, config.dataset.partition
        self.shares = partition(labels, loaded.training, workers, scheme, config.seed)
        self.dataset = loaded.dataset
        self.model = config.model.value
        self.optimizer = config.optimizer.value
        self.params = self.model.init(self.dataset.features, self.dataset.classes, config.seed)
        n = sum(value.size for value in self.params.values())
        self.slots = self.optimizer.init(n)

    def rounds(self, limit=None):
        """The micro-batches of each round, by worker; None for a worker that has run out."""
        iterators = [
            Batches(share, self.config.batch_size, self.config.seed, worker, self.config.epochs)
            for worker, share in enumerate(self.shares)
        ]
        done = 0
        while limit is None or done < limit:
            batches = [next(iterator, None) for iterator in iterators]
            if all(batch is None for batch in batches):
                return
            yield [None if batch is None else batch[1] for batch in batches]
            done += 1

    def gradient(self, indices):
        """The flat gradient of the mean loss over ``indices``."""
        x, y = self.dataset.batch(indices)
        grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.model.loss_and_grad(self.params, x, y, grads, cpu)
        return np.concatenate([grad.ravel() for grad in grads.values()])

    def mean_of_workers(self, batches):
        """sum(w_i g_i) / sum(w_i) in worker order, w_i the number of samples."""
        present = [indices for indices in batches if indices is not None]
        total = sum(float(len(indices)) for indices in present)
        terms = [self.gradient(i) * np.float32(len(i) / total) for i in present]
        mean = terms[0]
        for term in terms[1:]:
            mean = mean + term
        return mean

    def union(self, batches):
        """The gradient of all workers' samples as one batch."""
        return self.gradient(np.concatenate([i for i in batches if i is not None]))

    def train(self, combine, limit=None):
        """Trains with ``combine(batches)`` as the gradient of a round; returns the flat vector."""
        flat = np.concatenate([value.ravel() for value in self.params.values()])
        scratch = np.zeros((2, flat.size), np.float32)
        for step, batches in enumerate(self.rounds(limit), start=1):
            grad = combine(batches)
            rate = self.optimizer.learning_rate * self.config.schedule.value.factor(step - 1)
            decay = self.optimizer.weight_decay
            self.optimizer.apply(flat, grad, self.slots, step, rate, decay, scratch)
            at = 0
            for value in self.params.values():
                value[...] = flat[at : at + value.size].reshape(value.shape)
                at += value.size
        return flat

    @property
    def sha256(self):
        """What the trainer calls ``params_sha256``."""
        return hashlib.sha256(b"".join(v.tobytes() for v in self.params.values())).hexdigest()
