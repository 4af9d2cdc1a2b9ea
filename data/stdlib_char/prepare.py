"""
Python's own standard library as a character-level corpus: 4.6 MB of real text that is on every machine
already. `python data/stdlib_char/prepare.py` takes a second. The vocabulary is fixed, printable ASCII and the
newline, so that checkpoints carry over between Python versions; lines with anything else are left out. A file
goes to val by the checksum of its name: the same split everywhere.
"""
import os
import string
import sys
import sysconfig
import zlib
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.text import write_corpus

CHARS = '\n' + string.printable[:95]


def main():
    folder = sysconfig.get_paths()['stdlib']
    files = sorted(Path(folder).glob('*.py'))
    if not files:
        raise FileNotFoundError(f"no .py files in {folder}, this Python's standard library: give a text file "
                                "with --dataset=path/to/file.txt")
    texts = {'train': [], 'val': []}
    for file in files:
        lines = file.read_text(encoding='utf-8', errors='replace').split('\n')
        split = 'train' if zlib.crc32(file.name.encode()) % 10 else 'val'
        texts[split].append('\n'.join(line for line in lines if set(line) <= set(CHARS)))
    write_corpus(__file__, CHARS, '\n'.join(texts['train']), '\n'.join(texts['val']), files)


if __name__ == '__main__':
    main()
