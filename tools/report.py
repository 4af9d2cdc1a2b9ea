"""
A run's page, report.html in its out_dir; of several runs one page, their curves in the same charts.
$ python -m tools.report out-grpo
$ python -m tools.report out-grpo out-arithmetic-grpo --out=both.html
train_grpo.py writes it at each evaluation and at its end.
"""
import os
import sys

from report import write_report
from runtime.config import configure
from tasks import TASKS


def main(out_dirs, cfg):
    if not out_dirs:
        raise ValueError("name the out_dir of a run, or of several")
    path = write_report(out_dirs, TASKS, cfg.out)
    print(f"{path} ({os.path.getsize(path) / 1e3:,.0f} kB)")


if __name__ == '__main__':
    out: str | None = None  # another path for the page
    options = [argument for argument in sys.argv[1:] if argument.startswith('-')]
    main([name for name in sys.argv[1:] if name not in options], configure(globals(), argv=options))
