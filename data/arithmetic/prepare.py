"""
Sums to answer, `12+34=` with the answer `46`: a task that a tiny character-level model can learn from
rewards. `python data/arithmetic/prepare.py` writes all sums of two numbers from 0 to 99: 1,000 to val.jsonl
and 9,000 to train.jsonl. Both orders of a sum, 12+34 and 34+12, go the same way, so that a model that only
remembers what it saw, and that addition commutes, knows nothing of val.
"""
import os
import random
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import write_splits


def sums(largest=99, n_val=1000, seed=0):
    """(train, val): lists of {'prompt', 'answer'} with all (largest + 1)^2 sums, val n_val of them."""
    pairs = [(a, b) for a in range(largest + 1) for b in range(a, largest + 1)]
    if not 0 < n_val < (largest + 1) ** 2:
        raise ValueError(f"n_val is {n_val}: of the {(largest + 1) ** 2} sums up to {largest}+{largest} "
                         "keep at least 1 for val and 1 for train")
    rng = random.Random(seed)
    rng.shuffle(pairs)
    train, val = [], []
    for a, b in pairs:
        both = [{'prompt': f'{x}+{y}=', 'answer': str(x + y)} for x, y in sorted({(a, b), (b, a)})]
        (val if len(val) + len(both) <= n_val else train).extend(both)
    rng.shuffle(train)
    rng.shuffle(val)
    return train, val


def main():
    train, val = sums()
    write_splits(__file__, val=val, train=train)


if __name__ == '__main__':
    main()
