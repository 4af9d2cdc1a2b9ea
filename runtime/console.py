"""
What a run says, and how far it is. say() prints a line, unless the run is to be quiet; tell() prints it even
then. Rank 0 alone speaks. A phase that may last counts its steps with a Progress: on a terminal or in a
notebook a bar below the lines; else, when no line has come for half a minute, one that says how far all are.
"""
import os
import re
import shlex
import sys
import time

from tqdm.auto import tqdm

quiet = False        # train_grpo.py sets it
BAR_AFTER = 2.0      # seconds; what is done sooner needs no bar
LINE_AFTER = 30.0    # without a line; each that only says how far things are doubles it
tqdm.monitor_interval = 0  # no thread that looks after the bars
RESULTS = ('report.html', 'samples.jsonl', 'tensorboard', 'ckpt.pt', 'ckpt_best.pt', 'nla.pt', 'fill_in.pt',
           'adapter', 'export')
COMMANDS = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')
phases = []          # those going on, the outermost first
loaded, began = time.time(), time.monotonic()  # the first is compared with files, and may jump
last_line, patience = began, LINE_AFTER


def is_master():
    return int(os.environ.get('RANK', 0)) == 0


def harmless(text):
    """The text with what moves a terminal's cursor, or turns its writing round, as Python writes it."""
    return COMMANDS.sub(lambda match: ascii(match[0])[1:-1], text)


def painted(text, file):
    """The text with slots and line ends in colour, where the file is a terminal."""
    return re.sub('[□⏎]', '\x1b[7m\\g<0>\x1b[0m', text) if file.isatty() else text


def tell(text):
    global last_line, patience
    if is_master():
        with tqdm.external_write_mode():
            print(painted(harmless(text), sys.stdout), flush=True)
    last_line, patience = time.monotonic(), LINE_AFTER


def say(text):
    if not quiet:
        tell(text)


def duration(seconds):
    """'48 s', '3 min 21 s', '2 h 5 min'."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {s} s' if minutes else f'{s} s'


class Progress:
    """A phase of `total` steps from `start` on. Its bar comes once it has lasted `bar_after` seconds."""

    def __init__(self, name, total, start=0, bar_after=None):
        self.name, self.total, self.start, self.done = name, total, start, start
        self.began, self.bar = time.monotonic(), None
        self.bar_after = BAR_AFTER if bar_after is None else bar_after

    def __enter__(self):
        phases.append(self)
        if not self.bar_after:
            self.draw()
        return self

    def __exit__(self, *_):
        phases.remove(self)
        if self.bar is not None:
            self.bar.close()

    def draw(self):
        # Only where lines go to the same screen, for nothing else would clear the bar before them. None: tqdm
        # looks whether it is a terminal; in a notebook neither is one, and it draws.
        silent = quiet or not is_master() or sys.stdout.isatty() != sys.stderr.isatty()
        self.bar = tqdm(total=self.total, initial=self.start, desc=self.name, leave=False, dynamic_ncols=True,
                        miniters=1, smoothing=0, disable=True if silent else None)
        began = time.time() - (time.monotonic() - self.began)
        self.bar.start_t = self.bar.last_print_t = began  # its speed is that of the whole phase

    def step(self, *_):
        """One more is done; a callback's arguments are ignored."""
        global patience
        self.done = min(self.done + 1, self.total)
        now = time.monotonic()
        if self.bar is None and now - self.began >= self.bar_after:
            self.draw()
        if self.bar is None:
            return
        self.bar.update(self.done - self.bar.n)
        if self.bar.disable and now - last_line > patience:
            longer = min(2 * patience, 600.0)
            say('  ' + ', '.join(map(str, phases)))
            patience = longer

    def __str__(self):
        share = 100 * self.done // max(1, self.total)
        return f"{self.name} {self.done}/{self.total} ({share} %{self.left(self.done)})"

    def note(self, text):
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)

    def left(self, done):
        """', 3 min 21 s left' after so many steps; '' at the end and after a first step, which warms up."""
        if not self.start + 1 < done < self.total:
            return ''
        seconds = (time.monotonic() - self.began) / (done - self.start) * (self.total - done)
        return f', {duration(seconds)} left'

    def over(self, things):
        with self:
            for thing in things:
                yield thing
                self.step()


def over(name, things):
    """Go through things, a phase of this name if they are several."""
    return Progress(name, len(things)).over(things) if len(things) > 1 else iter(things)


def this_run(*changed):
    """The command that started this run, with some --key=value arguments changed, as a shell takes it."""
    start, nodes = ['python'], os.environ.get('GROUP_WORLD_SIZE', '1')
    if 'LOCAL_WORLD_SIZE' in os.environ:
        meeting = ['--standalone']
        if nodes != '1':
            endpoint = f"--rdzv_endpoint={os.environ['MASTER_ADDR']}:29400"
            meeting = [f'--nnodes={nodes}', '--rdzv_backend=c10d', endpoint]
        start = ['torchrun', *meeting, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"]
    keys = [argument.partition('=')[0] for argument in changed]
    kept = [argument for argument in sys.argv[1:] if argument.partition('=')[0] not in keys]
    return shlex.join([*start, sys.argv[0], *kept, *changed])


def tool(name, *arguments):
    """The command that starts one of tools/ here, as a shell takes it."""
    root = os.path.dirname(sys.argv[0])
    found_from_here = f'PYTHONPATH={shlex.quote(root)} ' if root else ''
    return found_from_here + shlex.join(['python', '-m', f'tools.{name}', *arguments])


def closing(out_dir, verdict, training, try_out):
    """
    How a run ended: its verdict, the time, where things are, what to run next.
    training: the Progress of its iterations; try_out: the file in out_dir for sample.py, its other arguments.
    """
    if verdict:
        tell(verdict)
    now = time.monotonic()
    tell(f"done: iterations {training.start} to {training.total} in {duration(now - training.began)}, "
         f"{duration(now - began)} in all")
    made = [name for name in RESULTS if os.path.exists(os.path.join(out_dir, name))]
    root, (file, arguments) = os.path.dirname(sys.argv[0]), try_out
    checkpoint = f'--checkpoint={os.path.join(out_dir, file)}'
    sample = shlex.join(['python', os.path.join(root, 'sample.py'), checkpoint, *arguments])
    longer = [f'--max_iters={2 * training.total or 100}']
    if str(training.total) in out_dir:  # it may be made of max_iters
        longer.append(f'--out_dir={out_dir}')
    tell(f"  in {out_dir}: {', '.join(made)}\n  try it: {sample}\n  "
         f"compare: {tool('report', out_dir, 'another-run', '--out=both.html')}\n"
         f"  go on: {this_run(*longer, '--init_from=resume')}")
