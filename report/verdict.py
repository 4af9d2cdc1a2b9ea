"""
What came of a run, from what each of its held-out prompts got at the first evaluation and at the last. A mean
comes with two of its standard errors over prompts; that of a difference is taken prompt by prompt.
"""
import math
import statistics
from typing import NamedTuple

FEWEST = 10  # prompts; what fewer say is not judged
OUTCOME = {1: 'learned', 0: 'no change', -1: 'worse'}


class Mean(NamedTuple):
    value: float
    error: float

    @property
    def sign(self):
        """1 or -1 where it is further from 0 than its error, else 0."""
        return (self.value > self.error) - (self.value < -self.error)

    def __str__(self):
        return f'{self.value:.4f} ± {self.error:.4f}'


def mean_of(values, n=None):
    """The Mean of values, None where a prompt has none; n: how many are independent, where not all."""
    values = [value for value in values if value is not None]
    n = min(len(values), n or len(values))
    if n < FEWEST:
        return Mean(statistics.fmean(values or [0.0]), math.inf)
    return Mean(statistics.fmean(values), 2 * statistics.stdev(values) / math.sqrt(n))


class Looks:
    """What held-out prompts got at two evaluations, {name: a value each}, and how many are independent."""

    def __init__(self, first, last, n=None):
        self.first, self.last, self.n = first, last, n

    def mean(self, name):
        """At the end."""
        return mean_of(self.last[name], self.n)

    def above(self, name, other):
        """By how much one is above another at the end."""
        return mean_of(differences(self.last[name], self.last[other]), self.n)

    def change(self, name):
        return mean_of(differences(self.last[name], self.first[name]), self.n)

    def told(self, name, words):
        """'WORDS rose, 0.3125 -> 0.8906 (+0.5781 ± 0.0432)'"""
        change, before, now = self.change(name), mean_of(self.first[name]), self.mean(name)
        verb = {1: 'rose, ', 0: '', -1: 'fell, '}[change.sign]
        return f"{words} {verb}{before.value:.4f} -> {now.value:.4f} ({change.value:+.4f} ± {change.error:.4f})"

    def outcome(self, name, words):
        return f"{OUTCOME[self.change(name).sign]}: {self.told(name, words)}"


def differences(values, others):
    pairs = zip(values, others, strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def verdict_of(rows, job, settings):
    """
    The sentence of a run, '' before there is one. rows: of its held_out.jsonl, {name: a value for each
    prompt}, 'independent': how many of them are; job: the class of its task; settings: the run's.
    """
    shapes = []
    for row in rows:
        shapes.append({name: len(values) for name, values in row.items() if isinstance(values, list)})
    # A run that goes on may have other held-out prompts than it began with.
    alike = [row for row, shape in zip(rows, shapes, strict=True) if shape and shape == shapes[-1]]
    if len(alike) < 2:
        return ''
    n = min(alike[-1]['independent'] or math.inf, *shapes[-1].values())
    if n < FEWEST:
        return f"too few to tell what came of it: {n} held out"
    return f"{job.verdict(Looks(alike[0], alike[-1], n), settings)} (± two standard errors over {n} held out)"
