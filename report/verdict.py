"""
What came of a run, from what each held-out prompt got at its first evaluation and at its last. A ± is two
standard errors of a mean over prompts; a difference is taken prompt by prompt.
"""
import math
import statistics
from typing import NamedTuple

FEWEST = 10  # prompts; what fewer say is not judged


class Mean(NamedTuple):
    value: float
    error: float
    sign: int  # 1 or -1 where the value is beyond its error, else 0

    def __str__(self):
        return f'{self.value:.4f} ± {self.error:.4f}'


class Looks(NamedTuple):
    """{name: a value for each prompt} at two evaluations, and how many prompts are independent."""
    first: dict
    last: dict
    n: int

    def mean(self, values, others=None):
        """The Mean of values, or of their differences to others, where a prompt has both."""
        pairs = zip(values, others or [0.0] * len(values), strict=True)
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if len(known) < FEWEST:
            return Mean(math.nan, math.inf, 0)
        value, n = statistics.fmean(known), min(self.n, len(known))
        error = 2 * statistics.stdev(known) / math.sqrt(n)
        return Mean(value, error, (value > error) - (value < -error))

    def change(self, name):
        return self.mean(self.last[name], self.first[name])

    def told(self, name, words):
        """'WORDS rose, 0.3125 -> 0.8906 (+0.5781 ± 0.0432)'"""
        change, then, now = self.change(name), self.mean(self.first[name]), self.mean(self.last[name])
        verb = {1: 'rose, ', 0: '', -1: 'fell, '}[change.sign]
        return f"{words} {verb}{then.value:.4f} -> {now.value:.4f} ({change.value:+.4f} ± {change.error:.4f})"

    def outcome(self, name, words):
        came = {1: 'learned', 0: 'no change', -1: 'worse'}[self.change(name).sign]
        return f'{came}: {self.told(name, words)}'


def verdict_of(rows, job, settings):
    """
    The sentence of a run; '' where nothing says it. rows: of its held_out.jsonl, see runtime.run.Log; job:
    the class of its task; settings: the run's.
    """
    rows = list(rows)
    shapes = [{name: len(x) for name, x in row.items() if isinstance(x, list)} for row in rows]
    # A run that goes on may have other held-out prompts than it began with.
    alike = [row for row, shape in zip(rows, shapes, strict=True) if shape and shape == shapes[-1]]
    if len(alike) < 2:
        return ''
    try:
        n = min(alike[-1]['independent'] or math.inf, *shapes[-1].values())
        first, last = ({name: row[name] for name in shapes[-1]} for row in (alike[0], alike[-1]))
        sentence = job.verdict(Looks(first, last, n), settings)
    except (AttributeError, KeyError, TypeError, ValueError):  # damaged lines, or another version's
        return ''
    if n < FEWEST:
        return f"too few to tell what came of it: {n} held out"
    return f"{sentence}; ± is two standard errors over {n} held out"
