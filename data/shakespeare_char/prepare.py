"""
Tiny Shakespeare, character level, 1.1 MB. `python data/shakespeare_char/prepare.py` downloads it; `python
data/shakespeare_char/prepare.py FILE` takes FILE instead.
"""
import os
import sys
import urllib.request

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.text import read_text_file, split_text, write_corpus

URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'


def main(path=None):
    folder = os.path.dirname(os.path.abspath(__file__))
    if path is None:
        path = os.path.join(folder, 'input.txt')
        if not os.path.isfile(path):
            try:
                with urllib.request.urlopen(URL, timeout=20) as reply:
                    text = reply.read()
            except OSError as e:
                raise FileNotFoundError(f"could not download {URL} ({e}): get the text elsewhere "
                                        "and run `python data/shakespeare_char/prepare.py FILE`, "
                                        "or use --dataset=FILE") from None
            with open(path, 'wb') as f:
                f.write(text)
    text = read_text_file(path)
    write_corpus(folder, *split_text(text), sorted(set(text)))


if __name__ == '__main__':
    try:
        main(*sys.argv[1:2])
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
