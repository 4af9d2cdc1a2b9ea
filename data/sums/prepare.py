"""
Two-digit sums in words, "What is 12 + 34? Reply with just the number.", for a model that can talk but hardly
add: `python data/sums/prepare.py` writes the 8,100 sums of 10 to 99, 500 of them to val.jsonl, both orders of
a sum together.
"""
import os
import random
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import write_splits


def main():
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    random.Random(0).shuffle(pairs)
    records = []
    for a, b in pairs:
        for x, y in sorted({(a, b), (b, a)}):
            prompt = f'What is {x} + {y}? Reply with just the number.'
            records.append({'prompt': prompt, 'answer': str(x + y)})
    val, train = records[:500], records[500:]
    for part in (val, train):
        random.Random(1).shuffle(part)
    write_splits(__file__, val=val, train=train)


if __name__ == '__main__':
    main()
