"""
A run's page, report.html in its out_dir; of several runs one page, their curves in the same charts.
$ python -m tools.report out-grpo
$ python -m tools.report out-grpo out-arithmetic-grpo --out=both.html
$ python -m tools.report out-compare       # all runs below a folder
$ python -m tools.report --serve out-grpo  # as it trains, for browsers on this machine
train_grpo.py writes it at each evaluation and at its end.
"""
import glob
import http.server
import os
from typing import Annotated

from formats.text_files import near_path
from report import page_of, write_report
from runtime.config import configure
from runtime.run import LOGS
from runtime.scorer import Handler
from tasks import TASKS


def runs_in(folder):
    """The folder, or where it is no run's, those of the runs that tools/compare.py left below it."""
    if os.path.exists(os.path.join(folder, 'metrics.jsonl')):
        return [folder]
    if not os.path.exists(folder):
        raise FileNotFoundError(f"there is no folder {folder!r}{near_path(folder)}")
    below = glob.escape(folder) + '/*'
    found = glob.glob(f'{below}/metrics.jsonl') + glob.glob(f'{below}/*/metrics.jsonl')
    return sorted(map(os.path.dirname, found)) or [folder]


class PageHandler(Handler):
    """The page as the logs are now, and at /version how long they are."""

    def do_GET(self):
        self.reply(self.version if self.path == '/version' else self.page, '/', '/version')

    def version(self):
        paths = [os.path.join(out_dir, f'{log}.jsonl') for out_dir in self.server.out_dirs for log in LOGS]
        return ' '.join(str(os.path.getsize(path)) for path in paths if os.path.exists(path)) or 'none'

    def page(self):
        return page_of(self.server.out_dirs, TASKS, self.version())


def show(out_dirs, port):
    """Serve the page until Ctrl-C."""
    page_of(out_dirs, TASKS)  # raises where there is no run
    try:
        server = http.server.ThreadingHTTPServer(('127.0.0.1', port), PageHandler)
    except OSError as e:
        raise OSError(f"cannot listen on port {port} ({e.strerror}): name another --port") from None
    server.out_dirs, server.patience = out_dirs, 60
    print(f"http://127.0.0.1:{server.server_address[1]} shows it until Ctrl-C", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("no longer served")


def main(folders, cfg):
    if not folders:
        raise ValueError("name the out_dir of a run, or of several")
    out_dirs = sum(map(runs_in, folders), [])
    if cfg.serve:
        show(out_dirs, cfg.port)
        return
    path = write_report(out_dirs, TASKS, cfg.out or os.path.join(folders[0], 'report.html'))
    print(f"{path} ({os.path.getsize(path) / 1e3:,.0f} kB)")


if __name__ == '__main__':
    out: str | None = None  # another path for the page
    serve = False           # True: show it to browsers here, anew as the run logs
    port: Annotated[int, '[0, 65535]'] = 8010  # 0: any free one
    main(*configure(globals(), names=True))
