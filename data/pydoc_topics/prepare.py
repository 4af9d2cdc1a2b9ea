"""
The help texts that come with every Python (pydoc_data.topics), 0.7 MB of English prose and code.
`python data/pydoc_topics/prepare.py` makes a record of each topic, whose 'prompt' is the whole text, with '?'
for what is not printable ASCII. A topic goes to val by the checksum of its name: the same split everywhere.
"""
import os
import string
import sys
import zlib

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import write_splits

CHARS = '\n' + string.printable[:95]


def main():
    from pydoc_data import topics as module
    splits = {'train': [], 'val': []}
    for name, text in sorted(module.topics.items()):
        split = 'train' if zlib.crc32(name.encode()) % 10 else 'val'
        splits[split].append({'topic': name, 'prompt': ''.join(c if c in CHARS else '?' for c in text)})
    write_splits(__file__, [module.__file__], **splits)


if __name__ == '__main__':
    main()
