"""
MBPP (Austin et al. 2021, arXiv 2108.07732, CC-BY-4.0): small Python problems in a sentence, three asserts
each. `python data/mbpp/prepare.py` downloads the original file; `--path=mbpp.jsonl` takes that one instead.
Writes train.jsonl (task_id 601 to 974) and val.jsonl (the paper's test part, 11 to 510) with the fields
task_id, prompt, answer (the reference solution), tests (the asserts, shown in the prompt as in the paper) and
hidden_tests (the challenge tests, which few problems have). Unsound tests are left out (data/programs.py).
"""
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.programs import convert_file, keep_sound
from data.prompts import write_splits
from data.text import download
from runtime.config import configure

ORIGINAL = 'https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl'


def convert(problems):
    """The records of a file's objects, less the unsound ones."""
    records = []
    for problem in problems:
        if not (10 < problem['task_id'] <= 510 or problem['task_id'] > 600):
            continue  # the paper's few-shot examples, and its validation part
        setup, hidden = problem['test_setup_code'].splitlines(), problem['challenge_test_list']
        first_line = f"{problem['text'].strip()} Your code should pass these tests:\n"
        records.append({
            'task_id': problem['task_id'],
            'prompt': '\n'.join([first_line, *problem['test_list']]),
            'answer': problem['code'].replace('\r\n', '\n'),
            'tests': setup + problem['test_list'],
            'hidden_tests': setup + hidden if hidden else [],
        })
    return keep_sound(records)


def main(path=None):
    if path is None:
        path = download(ORIGINAL, 'mbpp', 'original/mbpp.jsonl')
    fields = 'task_id, text, code, test_setup_code, test_list and challenge_test_list'
    records = convert_file(path, convert, fields)
    write_splits(__file__, [path], val=[r for r in records if r['task_id'] <= 510],
                 train=[r for r in records if r['task_id'] > 600])


if __name__ == '__main__':
    path: str | None = None  # the original mbpp.jsonl; None downloads it
    configure(globals())
    main(path)
