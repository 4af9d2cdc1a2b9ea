"""
Python's own standard library as a character-level corpus: 4.6 MB of real text that is on every machine
already. `python data/stdlib_char/prepare.py` (train_grpo.py calls it when needed) takes a second.

The vocabulary is fixed, printable ASCII and the newline, so that checkpoints carry over between Python
versions; lines with anything else are left out. A file goes to val by the checksum of its name: the same
split everywhere.
"""
import glob
import os
import string
import sys
import sysconfig
import zlib

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.text import write_corpus

CHARS = '\n' + string.printable[:95]


def main():
    files = sorted(glob.glob(os.path.join(sysconfig.get_paths()['stdlib'], '*.py')))
    if not files:
        raise FileNotFoundError(f"no .py files in {sysconfig.get_paths()['stdlib']}: this Python keeps its "
                                "standard library elsewhere; give a text file with "
                                "--dataset=path/to/file.txt")
    texts = {'train': [], 'val': []}
    for file in files:
        with open(file, encoding='utf-8', errors='replace') as f:
            lines = [line for line in f.read().split('\n') if set(line) <= set(CHARS)]
        split = 'val' if zlib.crc32(os.path.basename(file).encode()) % 10 == 0 else 'train'
        texts[split].append('\n'.join(lines))
    write_corpus(os.path.dirname(os.path.abspath(__file__)), '\n'.join(texts['train']),
                 '\n'.join(texts['val']), CHARS)


if __name__ == '__main__':
    main()
