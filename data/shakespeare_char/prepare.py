"""
Tiny Shakespeare, character level, 1.1 MB. `python data/shakespeare_char/prepare.py` downloads it;
`--path=FILE` takes FILE instead.
"""
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.text import download, read_text_file, split_text, write_corpus
from runtime.config import configure

URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'


def main(path=None):
    if path is None:
        path = download(URL, 'shakespeare_char', 'input.txt')
    text = read_text_file(path)
    write_corpus(__file__, sorted(set(text)), *split_text(text), [path])


if __name__ == '__main__':
    path: str | None = None  # see above
    configure(globals())
    main(path)
