"""
Several processes as one, started by torchrun.

A collective waits `timeout` seconds at most for a rank that hangs; one that died is noticed at once. Where
rank 0 pretrains, evaluates or exports the others wait as long as it takes. When a wait was in vain, who still
runs checks in, and the message names those who do not.

SIGINT or SIGTERM asks to stop, and a second one insists. As long as an iteration has changed nothing (an
evaluation, rollouts, rewards, and with one process the first backward) it is broken off, for it may last
minutes and a cluster waits half a minute; else, and where a sharded model keeps ranks in step, it goes on.
"""
import datetime
import itertools
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial

import torch
import torch.distributed as dist

from runtime import console

CHECK_IN = 5.0          # seconds that those who are left have to report, after one of them has lost somebody
turns = itertools.count()
stop_signals = []       # those that came
previous_handlers = {}
may_break = False       # a signal breaks off what goes on


class Stopped(BaseException):
    """A signal has broken off what had changed nothing yet. `except Exception` lets it pass."""


def join(backend: str, timeout: float) -> None:
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    the_store().set(f'who/{dist.get_rank()}', f"process {os.getpid()} on {socket.gethostname()}")
    sys.excepthook = partial(say_who_is_lost, sys.excepthook)


def the_store():
    """The keys and values that all ranks share."""
    return dist.distributed_c10d._get_default_store()


def wait_for_rank_0() -> None:
    """Until rank 0 comes here too, however long that takes. It does not wait for the others."""
    if not joined():
        return
    turn = f'turn/{next(turns)}'
    if is_first():
        the_store().set(turn, '')
        return
    try:
        while not the_store().check([turn]):  # not in the store's own wait, which hears no signal
            if the_store().check(['failed']):
                raise RuntimeError("rank 0 has failed; see its message")
            time.sleep(0.05)
    except dist.DistNetworkError:  # rank 0 kept the store, where torchrun does not
        raise RuntimeError("rank 0 has failed; its message, if it left one, says how") from None


def listen() -> None:
    """From now on a first SIGINT or SIGTERM only asks to stop."""
    for s in (signal.SIGINT, signal.SIGTERM):
        previous_handlers[s] = signal.signal(s, asked_to_stop)


def asked_to_stop(number, frame):
    global may_break
    stop_signals.append(number)
    for s, handler in previous_handlers.items():  # a second one stops at once
        signal.signal(s, handler)
    if may_break:
        may_break = False
        raise Stopped


@contextmanager
def breakable(really: bool = True):
    """A context in which nothing that counts changes, if `really`: a signal breaks it off with Stopped."""
    global may_break
    if really and stop_signals:
        raise Stopped
    may_break = really
    try:
        yield
    finally:
        may_break = False


@contextmanager
def together(device, really: bool = True):
    """
    What every rank does by itself, breakable; at the end they meet. Where one has lost its scorer
    (ConnectionError) or was told to stop (Stopped), all raise that.
    """
    failure = None
    try:
        with breakable(really):
            yield
    except (ConnectionError, Stopped) as e:
        failure = e
    lost = isinstance(failure, ConnectionError)
    scorer_lost, stopped = any_of(device, lost, isinstance(failure, Stopped))
    if lost:
        raise failure
    if scorer_lost:
        raise ConnectionError("the scorer failed another process, whose message says how")
    if stopped:
        raise failure or Stopped()


def say_who_is_lost(say_what, kind, error, trace):
    """The last act of a rank that an error ends; one out of a collective is another rank's fault: whose?"""
    say_what(kind, error, trace)
    if is_first():
        with suppress(RuntimeError):  # who kept the store may be gone
            the_store().set('failed', '')
    of_torch = os.path.dirname(dist.__file__)
    files = [frame.filename for frame in traceback.extract_tb(trace)]
    if isinstance(error, RuntimeError) and any(file.startswith(of_torch) for file in files):
        names = ', '.join(those_lost())
        if names:
            print(f"rank {dist.get_rank()} stops: no answer any more from {names}. Go on from the last "
                  "checkpoint with --init_from=resume", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(1)  # an ordinary exit would wait for threads that wait for the lost


def those_lost():
    """The ranks that do not check in, by name."""
    store, lost, until = the_store(), set(range(dist.get_world_size())), time.monotonic() + CHECK_IN
    try:
        store.set(f'left/{dist.get_rank()}', '')
        while lost and time.monotonic() < until:
            lost = {rank for rank in lost if not store.check([f'left/{rank}'])}
            time.sleep(0.1)
        return [f"rank {rank} ({store.get(f'who/{rank}').decode()})" for rank in sorted(lost)]
    except RuntimeError:  # the store's keeper is gone
        return ['the process that the ranks met at']


def leave() -> None:
    """The end of a run that went well."""
    wait_for_rank_0()
    dist.barrier()  # nobody hangs up while another still speaks
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort an ordinary exit (pytorch issue 190489)


def joined():
    return dist.is_initialized()


def is_first():
    """Whether this process is rank 0, or alone."""
    return not joined() or dist.get_rank() == 0


def all_reduce(tensor, op='sum'):
    """The sum, or the maximum, over all ranks, in place."""
    if joined():
        dist.all_reduce(tensor, dist.ReduceOp.SUM if op == 'sum' else dist.ReduceOp.MAX)
    return tensor


def gather(tensor):
    """The tensors of all ranks, one behind the other along the first axis."""
    if not joined():
        return tensor
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    return torch.cat(everyone)


def once(make):
    """Call make() on rank 0 while the others wait: files are made once."""
    if is_first():
        with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere if console.quiet else sys.stdout):
            make()  # the scripts in data/ print
    wait_for_rank_0()


def any_of(device, *flags):
    """For each flag whether it is set on any rank."""
    if not joined():
        return [bool(flag) for flag in flags]
    summed = all_reduce(torch.tensor([bool(flag) for flag in flags], dtype=torch.float, device=device), 'max')
    return [value > 0 for value in summed.tolist()]


def mean(value):
    """The mean over all ranks of a tensor without axes, as a float."""
    return all_reduce(value).item() / (dist.get_world_size() if joined() else 1)


def from_first(value):
    """What rank 0 has for a value, on all ranks."""
    values = [value]
    if joined():
        dist.broadcast_object_list(values)
    return values[0]
