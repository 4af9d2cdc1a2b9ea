"""
Two-digit sums in words, "What is 12 + 34? Reply with just the number.", for a model that can talk but hardly
add: `python data/sums/prepare.py` writes the 8,100 sums of 10 to 99, 500 of them to val.jsonl, both orders of
a sum together.
"""
import os
import random
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.prompts import write_jsonl


def main():
    folder = os.path.dirname(os.path.abspath(__file__))
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    random.Random(0).shuffle(pairs)
    records = [{'prompt': f'What is {x} + {y}? Reply with just the number.', 'answer': str(x + y)} for a,
               b in pairs for x, y in sorted({(a, b), (b, a)})]
    for name, part in (('val', records[:500]), ('train', records[500:])):
        random.Random(1).shuffle(part)
        write_jsonl(os.path.join(folder, f'{name}.jsonl'), part)


if __name__ == '__main__':
    main()
