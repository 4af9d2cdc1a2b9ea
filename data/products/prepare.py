"""
Products like 57*430=, for config/tools.py. 'product' is right; 'answer' is what the start is taught: mostly the
product, else, with errors, a call, what a calculator says to it, and a copy: <<57*430>>24510 24510.
"""
import os
import random
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import write_splits

CALLS, ERRORS = 0.2, 0.3


def perhaps_wrong(number, rng):
    """The number's digits, one of them drawn anew in some."""
    digits = list(str(number))
    if rng.random() < ERRORS:
        digits[rng.randrange(len(digits))] = rng.choice('123456789')
    return ''.join(digits)


def main():
    rng, records = random.Random(1), {}
    for _ in range(8000):
        a, b = rng.randint(10, 99), rng.choice([rng.randint(10, 99), rng.randint(100, 999)])
        taught = product = str(a * b)
        if rng.random() < CALLS:
            factor = perhaps_wrong(b, rng)
            told = a * int(factor)
            taught = f'<<{a}*{factor}>>{told} {perhaps_wrong(told, rng)}'
        records[a, b] = {'prompt': f'{a}*{b}=', 'answer': taught, 'product': product}
    records = list(records.values())
    write_splits(__file__, val=records[:500], train=records[500:])


if __name__ == '__main__':
    main()
