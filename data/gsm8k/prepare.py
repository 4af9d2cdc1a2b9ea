"""
GSM8K (Cobbe et al. 2021, arXiv 2110.14168, MIT): 7,473 school problems to train on and 1,319 held out.
`python data/gsm8k/prepare.py` downloads the original files; `--path=DIR` takes DIR/train.jsonl and
DIR/test.jsonl instead. Writes train.jsonl and val.jsonl with the fields prompt and answer, the worked
solution that ends in `#### 42`, as the reward number_answer reads it.
"""
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.prompts import load_prompts, write_splits
from data.text import download
from runtime.config import configure

ORIGINAL = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'


def read_original(file):
    """The records of one of GSM8K's own files. Raises ValueError, FileNotFoundError."""
    records = load_prompts(file, {'question': 'prompt'})
    for i, record in enumerate(records, 1):
        if '####' not in str(record.get('answer')):
            raise ValueError(f"{file}, problem {i}: the answer {record.get('answer')!r} has no line "
                             "`#### number`; is it GSM8K's original?")
    return [{'prompt': record['prompt'], 'answer': record['answer']} for record in records]


def main(path=None):
    if path is not None and os.path.realpath(path) == os.path.dirname(os.path.realpath(__file__)):
        raise ValueError(f"--path={path} is where the result goes: put the original files elsewhere")
    splits, files = {}, []
    for split, name in (('val', 'test.jsonl'), ('train', 'train.jsonl')):
        if path is None:
            files.append(download(f'{ORIGINAL}/{name}', 'gsm8k', f'original/{name}'))
        else:
            files.append(os.path.join(path, name))
        splits[split] = read_original(files[-1])
    write_splits(__file__, files, **splits)  # train last: it says that the rest is there


if __name__ == '__main__':
    path: str | None = None  # see above
    configure(globals())
    main(path)
