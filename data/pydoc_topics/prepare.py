"""
The help texts that come with every Python (pydoc_data.topics), one document a topic: 0.7 MB of English prose
and code. `python data/pydoc_topics/prepare.py` (train_grpo.py calls it when needed). Each record's 'prompt'
is a whole text.

Characters outside printable ASCII become '?'. A topic goes to val by the checksum of its name: the same split
everywhere.
"""
import os
import string
import sys
import zlib

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.prompts import write_jsonl

CHARS = '\n' + string.printable[:95]


def main():
    from pydoc_data.topics import topics
    splits = {'train': [], 'val': []}
    for name, text in sorted(topics.items()):
        split = 'train' if zlib.crc32(name.encode()) % 10 else 'val'
        splits[split].append({'topic': name, 'prompt': ''.join(c if c in CHARS else '?' for c in text)})
    for split, records in splits.items():
        write_jsonl(os.path.join(os.path.dirname(os.path.abspath(__file__)), f'{split}.jsonl'), records)


if __name__ == '__main__':
    main()
