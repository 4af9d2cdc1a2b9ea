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


def sums():
    """(train, val): lists of {'prompt', 'answer'}."""
    pairs = [(a, b) for a in range(100) for b in range(a, 100)]
    rng = random.Random(0)
    rng.shuffle(pairs)
    train, val = [], []
    for a, b in pairs:
        both = [{'prompt': f'{x}+{y}=', 'answer': str(x + y)} for x, y in sorted({(a, b), (b, a)})]
        (val if len(val) + len(both) <= 1000 else train).extend(both)
    rng.shuffle(train)
    rng.shuffle(val)
    return train, val


def main():
    train, val = sums()
    write_splits(__file__, val=val, train=train)


if __name__ == '__main__':
    main()
