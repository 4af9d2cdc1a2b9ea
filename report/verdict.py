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
        n = min(self.n, len(known))
        if n < FEWEST:
            return Mean(math.nan, math.inf, 0)
        value, error = statistics.fmean(known), 2 * statistics.stdev(known) / math.sqrt(n)
        return Mean(value, error, (value > error) - (value < -error))

    def change(self, name):
        return self.mean(self.last[name], self.first[name])

    def told(self, name, words):
        """'WORDS rose, 0.3125 → 0.8906 (+0.5781 ± 0.0432)'"""
        change, then, now = self.change(name), self.mean(self.first[name]), self.mean(self.last[name])
        verb = {1: 'rose, ', 0: '', -1: 'fell, '}[change.sign]
        return f"{words} {verb}{then.value:.4f} → {now.value:.4f} ({change.value:+.4f} ± {change.error:.4f})"

    def outcome(self, name, words):
        if math.isnan(self.change(name).value):
            return f'not known: too few prompts have a {words} at both evaluations'
        came = {1: 'learned', 0: 'no change', -1: 'worse'}[self.change(name).sign]
        return f'{came}: {self.told(name, words)}'


def verdict_of(rows, job, settings):
    """
    The sentence of a run, or ''. rows: of its held_out.jsonl, see runtime.run.Log; job: the class of its
    task; settings: the run's.
    """
    names = [name for name, values in rows[-1].items() if isinstance(values, list)] if len(rows) > 1 else []
    if not names:
        return ''
    try:
        first = {name: rows[0][name] for name in names}
        last = {name: rows[-1][name] for name in names}
        looks = Looks(first, last, rows[-1]['independent'])
        sentence = job.verdict(looks, settings)
    except (AttributeError, KeyError, TypeError, ValueError):  # damaged, or of other held-out prompts
        return ''
    if looks.n < FEWEST:
        return f"too little is held out to tell what came of it: {looks.n}"
    return f"{sentence}; ± two standard errors, n = {looks.n}"
