"""
Tiny Shakespeare, character level, 1.1 MB. `python data/shakespeare_char/prepare.py` downloads it; `python
data/shakespeare_char/prepare.py FILE` takes FILE instead.
"""
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.text import download, read_text_file, split_text, write_corpus

URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'


def main(path=None):
    if path is None:
        path = download(URL, 'shakespeare_char/input.txt', "get it elsewhere and run `python "
                        "data/shakespeare_char/prepare.py FILE`, or use --dataset=FILE")
    text = read_text_file(path)
    write_corpus(__file__, sorted(set(text)), *split_text(text), [path])


if __name__ == '__main__':
    try:
        main(*sys.argv[1:2])
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
