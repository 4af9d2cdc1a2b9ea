"""
What runs did, as one page that opens in any browser: report/ says what is on it.
$ python -m tools.report out-grpo  # writes out-grpo/report.html
$ python -m tools.report out-a out-b --out=both.html  # several runs in the same charts
train_grpo.py writes it at each evaluation and at its end.
"""
import os
import sys

from report import write_report
from runtime.config import one_line_errors
from tasks import TASKS


def main(arguments):
    options = [a for a in arguments if a.startswith('-')]
    folders = [a for a in arguments if a not in options]
    if {'-h', '--help'} & set(options):
        print(__doc__.strip())
        return
    for option in options:
        if not option.startswith('--out=') or option == '--out=':
            raise ValueError(f"{option}: the only option is --out=PATH")
    if not folders:
        raise ValueError("name the out_dir of one run or of several")
    path = write_report(folders, TASKS, options[-1].removeprefix('--out=') if options else None)
    print(f"{path} ({os.path.getsize(path) / 1e3:,.0f} kB)")


if __name__ == '__main__':
    sys.excepthook = one_line_errors
    main(sys.argv[1:])
