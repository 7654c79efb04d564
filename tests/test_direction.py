"""Estimates against planted differences, draws against their covariance, and the prompts that are shipped."""

import re
from collections import Counter
from statistics import mean

import numpy as np
import pytest

from deltalens.direction.direction import Direction
from deltalens.direction.estimate import difference, permuted, principal, probe, samples
from deltalens.direction.prompts import PLAIN, REASONING
from deltalens.evaluate.tasks import jsonl
from deltalens.statistics import auc


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel(), b.ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def groups(shift: np.ndarray, n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two groups of one strongly uneven covariance, `shift` apart, and the square roots of its diagonal."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(5, 0.2, len(shift))
    first, second = (rng.standard_normal((n, len(shift))) * scale for _ in range(2))
    return (first + shift).astype(np.float32), second.astype(np.float32), scale


@pytest.mark.parametrize("paired", [True, False])
def test_difference_of_means(paired: bool) -> None:
    first, second, _ = groups(np.linspace(0, 1, 16))
    found = difference(samples(first, second, paired))
    expected = first.astype(np.float64).mean(0) - second.astype(np.float64).mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_principal_direction_of_pairs() -> None:
    rng = np.random.default_rng(1)
    planted = np.linspace(-1, 1, 24)
    pairs = (np.outer(rng.uniform(1, 3, 60), planted) + 0.1 * rng.standard_normal((60, 24))).astype(np.float32)
    found = principal(pairs)
    assert cosine(found, planted) > 0.999  # it points where the mean does, and a constant shift is not taken out
    assert np.linalg.norm(found) == pytest.approx(np.sqrt(np.mean((pairs @ found / np.linalg.norm(found)) ** 2)))
    assert cosine(principal(-pairs), -planted) > 0.999


@pytest.mark.parametrize("paired", [True, False])
def test_probe_finds_what_separates(paired: bool) -> None:
    shift = np.zeros(16)
    shift[15] = 1.5  # five standard deviations along the axis of least variance; the mean difference is lost in noise
    first, second, _ = groups(shift)
    found = probe(first, second, paired, seed=0)
    assert cosine(found.vector, shift) > 0.9 > cosine(difference(samples(first, second, False)), shift)
    assert found.held_out == 40
    assert found.right >= 38
    along = found.vector / np.linalg.norm(found.vector)
    assert np.linalg.norm(found.vector) == pytest.approx(along @ (first.mean(0) - second.mean(0)), rel=1e-4)


def test_probe_of_nothing_is_at_chance() -> None:
    right = [probe(*groups(np.zeros(8), seed=s)[:2], False, seed=s) for s in range(20)]
    assert 0.4 < sum(p.right for p in right) / sum(p.held_out for p in right) < 0.6


@pytest.mark.parametrize("paired", [True, False])
def test_permuted_differences_have_the_covariance_within_groups(paired: bool) -> None:
    shift = np.zeros(12)
    shift[-1] = 100.0  # a huge difference must not leak into its own null
    first, second, scale = groups(shift, n=200)
    draws = permuted(samples(first, second, paired), 4000, seed=0)
    np.testing.assert_allclose(draws.std(0), scale * np.sqrt(2 / 200), rtol=0.15)
    np.testing.assert_allclose(draws.mean(0) / draws.std(0), 0, atol=0.08)


def test_basis_spans_the_rows_and_ignores_their_lengths() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 10)).astype(np.float32)
    stacked = np.concatenate([rows, rows[:1] * 3, rows[1:] * 1e-6])
    basis = Direction("x", stacked, 0, "writers", "residual").basis
    assert basis.shape == (10, 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(basis @ (basis.T @ rows.T), rows.T, atol=1e-5)


def pieces(text: str) -> int:
    """Words, digits and marks: nearly what a large vocabulary makes of common words, whose digits stand alone."""
    return len(re.findall(r"[^\W\d]+|\d|[^\w\s]", text))


def test_shipped_prompts_are_matched() -> None:
    reasoning, plain = jsonl.read(REASONING), jsonl.read(PLAIN)
    assert len(reasoning) == len(plain) == 60
    pairs = [(a.prompt, b.prompt) for a, b in zip(reasoning, plain, strict=True)]
    assert len({prompt for pair in pairs for prompt in pair}) == 120
    assert [p.id.removeprefix("reasoning/") for p in reasoning] == [p.id.removeprefix("plain/") for p in plain]
    assert {p.group for p in reasoning} == {"reasoning"}
    assert {p.group for p in plain} == {"plain"}
    assert all(prompt.endswith("?") for pair in pairs for prompt in pair)
    for count, most, apart in ((lambda text: len(text.split()), 1, 0.1), (pieces, 1, 0.1), (len, 15, 2)):
        differences = [count(a) - count(b) for a, b in pairs]
        assert max(map(abs, differences)) <= most
        assert abs(mean(differences)) <= apart


@pytest.mark.parametrize("half", [0, 1])
def test_length_of_shipped_prompts_does_not_betray_the_group(half: int) -> None:
    first, second = ([pieces(p.prompt) for p in jsonl.read(path)[half::2]] for path in (REASONING, PLAIN))
    area, low, high = auc(first, second)
    assert low < 0.5 < high and abs(area - 0.5) < 0.03
    assert (Counter(first) & Counter(second)).total() >= 24  # of 30: as many as trimming to equal counts leaves


def test_shipped_pairs_hold_numbers_of_the_same_digits() -> None:
    numbers = [[sorted(map(len, re.findall(r"\d+", p.prompt))) for p in jsonl.read(f)] for f in (REASONING, PLAIN)]
    assert numbers[0] == numbers[1]  # however a tokenizer cuts numbers, both of a pair get as many tokens of them
    assert sum(map(bool, numbers[0])) > 30


def test_shipped_prompts_begin_alike() -> None:
    first, second = (Counter(p.prompt.split()[0] for p in jsonl.read(path)) for path in (REASONING, PLAIN))
    assert (first & second).total() >= 50
