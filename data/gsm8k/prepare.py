"""
GSM8K (Cobbe et al. 2021, arXiv 2110.14168, MIT): 7,473 school problems to train on and 1,319 held out.
`python data/gsm8k/prepare.py` downloads the original files; `python data/gsm8k/prepare.py --path=DIR` takes
DIR/train.jsonl and DIR/test.jsonl instead. Writes train.jsonl and val.jsonl with the fields prompt and
answer, where answer is the whole worked solution that ends in `#### 42`: the reward number_answer reads it as
it is.
"""
import http.client
import os
import sys
import urllib.request

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.prompts import load_prompts, write_jsonl
from runtime.config import configure

FOLDER = os.path.dirname(os.path.abspath(__file__))
# they are downloaded from here
ORIGINAL = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'


def download(name):
    """The path of an original file, fetched once. Raises FileNotFoundError when that fails."""
    path = os.path.join(FOLDER, 'original', name)
    if not os.path.isfile(path):
        try:
            with urllib.request.urlopen(f'{ORIGINAL}/{name}', timeout=20) as reply:
                data = reply.read()
        except (OSError, http.client.HTTPException) as e:
            raise FileNotFoundError(f"could not download {ORIGINAL}/{name} ({e}): get train.jsonl "
                                    "and test.jsonl elsewhere and run `python "
                                    "data/gsm8k/prepare.py --path=THEIR_FOLDER`") from None
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + '.tmp', 'wb') as f:
            f.write(data)
        os.replace(path + '.tmp', path)
    return path


def main(path=None):
    """
    path: a folder with the original train.jsonl and test.jsonl; None downloads them. Raises ValueError,
    FileNotFoundError.
    """
    if path is not None and os.path.realpath(path) == os.path.realpath(FOLDER):
        raise ValueError(f"--path={path} is where the result goes: put the original files into another "
                         "folder")
    converted = {}
    # train last: it says that the rest is there
    for theirs, ours in (('test.jsonl', 'val.jsonl'), ('train.jsonl', 'train.jsonl')):
        file = download(theirs) if path is None else os.path.join(path, theirs)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"there is no {file}: --path must name a folder with GSM8K's original "
                                    "train.jsonl and test.jsonl")
        records = load_prompts(file, {'question': 'prompt'})
        for i, record in enumerate(records):
            if '####' not in str(record.get('answer')):
                raise ValueError(f"{file}, problem {i + 1}: the answer {record.get('answer')!r} has no line "
                                 "`#### number`; are these GSM8K's original files?")
        converted[ours] = [{'prompt': record['prompt'], 'answer': record['answer']} for record in records]
    for name, records in converted.items():
        write_jsonl(os.path.join(FOLDER, name), records)


if __name__ == '__main__':
    path: str | None = None  # a folder with the original train.jsonl and test.jsonl; None downloads them
    configure(globals())
    main(path)
