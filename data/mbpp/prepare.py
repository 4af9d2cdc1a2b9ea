"""
MBPP (Austin et al. 2021, arXiv 2108.07732, CC-BY-4.0): small Python problems in a sentence, three asserts
each. `python data/mbpp/prepare.py` downloads the original file; `--path=mbpp.jsonl` takes that one instead.
Writes train.jsonl (task_id 601 to 974) and val.jsonl (the paper's test part, 11 to 510) with the fields
task_id, prompt, answer (the reference solution), tests (the asserts, shown in the prompt as in the paper) and
hidden_tests (the challenge tests, which few problems have). The rest of the 974 are the paper's validation
part and its few-shot examples. Left out, with a count, are tests that cannot be taken apart, that a constant
passes, or that the reference solution fails.
"""
import http.client
import json
import os
import sys
import urllib.request

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.programs import keep_sound, report
from data.prompts import write_jsonl
from runtime.config import configure

FOLDER = os.path.dirname(os.path.abspath(__file__))
ORIGINAL = 'https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl'


def download():
    """The path of the original file, fetched once. Raises FileNotFoundError when that fails."""
    path = os.path.join(FOLDER, 'original', 'mbpp.jsonl')
    if not os.path.isfile(path):
        try:
            with urllib.request.urlopen(ORIGINAL, timeout=20) as reply:
                data = reply.read()
        except (OSError, http.client.HTTPException) as e:
            raise FileNotFoundError(f"could not download {ORIGINAL} ({e}): get it elsewhere and "
                                    "run `python data/mbpp/prepare.py --path=mbpp.jsonl`") from None
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + '.tmp', 'wb') as f:
            f.write(data)
        os.replace(path + '.tmp', path)
    return path


def convert(problems):
    """problems: the file's objects. Returns (records, a Counter of why others were left out)."""
    records = []
    for problem in problems:
        setup = problem['test_setup_code'].splitlines()
        records.append({
            'task_id': problem['task_id'],
            'prompt': '\n'.join([f"{problem['text'].strip()} Your code should pass these tests:\n",
                                 *problem['test_list']]),
            'answer': problem['code'].replace('\r\n', '\n'),
            'tests': setup + problem['test_list'],
            'hidden_tests': setup + problem['challenge_test_list'] if problem['challenge_test_list'] else [],
        })
    return keep_sound(records)


def main(path=None):
    """path: the original mbpp.jsonl; None downloads it. Raises FileNotFoundError, ValueError."""
    path = download() if path is None else path
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {path}: it must be MBPP's original mbpp.jsonl")
    try:
        with open(path, encoding='utf-8') as f:
            problems = [json.loads(line) for line in f if line.strip()]
        prompts_of_papers = range(511, 601)  # and 1 to 10 are examples
        problems = [problem for problem in problems
                    if problem['task_id'] > 10 and problem['task_id'] not in prompts_of_papers]
        records, dropped = convert(problems)
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: {type(e).__name__} {e}; a line must be an object with task_id, "
                         "text, code, test_setup_code, test_list and challenge_test_list, as in "
                         "mbpp.jsonl") from None
    report(dropped)
    write_jsonl(os.path.join(FOLDER, 'val.jsonl'), [record for record in records if record['task_id'] <= 510])
    write_jsonl(os.path.join(FOLDER, 'train.jsonl'),
                [record for record in records if record['task_id'] >= 601])


if __name__ == '__main__':
    path: str | None = None  # the original mbpp.jsonl; None downloads it
    configure(globals())
    main(path)
