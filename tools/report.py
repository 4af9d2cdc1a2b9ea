"""
What runs did, as one page, report.html, which opens in any browser, from the disk, without a network.
$ python -m tools.report out-grpo                                  # writes out-grpo/report.html
$ python -m tools.report out-a out-b --out=both.html               # several runs in the same charts
train_grpo.py writes it at each evaluation and at its end. See report/__init__.py for what is on it.
"""
import os
import sys

from report import write_report
from runtime.config import one_line_errors
from tasks import TASKS


def main(arguments):
    options = [a for a in arguments if a.startswith('-')]
    folders = [a for a in arguments if not a.startswith('-')]
    if {'-h', '--help'} & set(options):
        print(__doc__.strip())
        return
    for option in options:
        if not option.startswith('--out=') or option == '--out=':
            raise ValueError(f"{option}: the only option is --out=PATH, where the page goes")
    if not folders:
        raise ValueError("name the out_dir of a run, or several: python -m tools.report out-grpo")
    path = write_report(folders, TASKS, options[-1].removeprefix('--out=') if options else None)
    print(f"{path} ({os.path.getsize(path) / 1e3:,.0f} kB)")


if __name__ == '__main__':
    sys.excepthook = one_line_errors
    main(sys.argv[1:])
