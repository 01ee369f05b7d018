"""Scores of a model's outputs, as plain functions of arrays."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Array = NDArray[np.floating]
Labels = NDArray[np.int64]

IGNORED = -100  # label of a token that does not count


def accuracy(outputs: Array, labels: Labels) -> float:
    """Share of samples whose largest logit is the label's. outputs: [n, classes], labels: [n].

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))
    0.5
    """
    return float((outputs.argmax(-1) == labels).mean())


def macro_f1(outputs: Array, labels: Labels) -> float:
    """Mean of the F1 scores of the classes that occur in labels or predictions. outputs: [n, classes], labels: [n].

    >>> macro_f1(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 1]))
    1.0
    """
    predicted = outputs.argmax(-1)
    classes = outputs.shape[-1]
    counts = np.bincount(labels * classes + predicted, minlength=classes**2)
    counts = counts.reshape(classes, classes)  # [label, predicted]
    both = counts.sum(0) + counts.sum(1)
    occurs = both > 0
    return float((2 * counts.diagonal()[occurs] / both[occurs]).mean())


def token_loss(logits: Array, labels: Labels) -> tuple[float, int]:
    """Summed cross entropy (nats) of each token given those before it, and how many tokens counted.

    logits: [batch, time, vocab], labels: [batch, time], IGNORED where a token does not count.
    """
    given = torch.from_numpy(logits)[:, :-1].float()
    wanted = torch.from_numpy(labels)[:, 1:]
    total = F.cross_entropy(given.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
    return float(total), int((wanted != IGNORED).sum())


def mean_cosine(outputs: Array, reference: Array) -> float:
    """Mean cosine between each vector and its reference. Both [n, width].

    >>> round(mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])), 9)
    0.5
    """
    lengths = np.linalg.norm(outputs, axis=-1) * np.linalg.norm(reference, axis=-1)
    return float(((outputs * reference).sum(-1) / np.maximum(lengths, 1e-12)).mean())


def ranks(values: Array) -> Array:
    """Rank of each value, ties averaged.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def spearman(first: Array, second: Array) -> float:
    """Rank correlation of two lists of numbers; 0 when one of them is constant.

    >>> round(spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 90.0])), 9)
    1.0
    """
    a, b = ranks(first) - (len(first) + 1) / 2, ranks(second) - (len(second) + 1) / 2
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm else 0.0


def pair_spearman(outputs: Array, labels: Array) -> float:
    """Rank correlation between the cosines of pairs (rows 2i and 2i+1) and their scores (repeated on both rows)."""
    left, right = outputs[0::2], outputs[1::2]
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return spearman((left * right).sum(-1) / np.maximum(lengths, 1e-12), labels[0::2])


def agreement(outputs: Array, reference: Array) -> float:
    """Share of positions at which both have their largest logit at the same place. Both [..., classes]."""
    return float((outputs.argmax(-1) == reference.argmax(-1)).mean())


def divergence(outputs: Array, reference: Array) -> float:
    """Mean KL(reference‖outputs) in nats of the distributions that two sets of logits stand for. Both [..., classes].

    >>> divergence(np.zeros((2, 3)), np.zeros((2, 3)))
    0.0
    """
    given = F.log_softmax(torch.from_numpy(outputs).float(), dim=-1)
    wanted = F.log_softmax(torch.from_numpy(reference).float(), dim=-1)
    return float((wanted.exp() * (wanted - given)).sum(-1).mean())
