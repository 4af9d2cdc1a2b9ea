#!/usr/bin/env -S python3 -S -E
"""
A Python that has imported torch already, for the hundreds of runs that the tests start: `[PYTHON, 'train_grpo.py', ...]` in place of
sys.executable.

PYTHON is this file. It hands its arguments, folder, environment and open files to a server (`start()`; conftest.py has one for each test
process) that forks a process for them: the script runs there as it would in a new Python, two or three seconds sooner. Signals are passed
on; when the caller dies, so does the fork. What looks at its own process (its pid, its limits, its terminal, another hash seed or number of
threads) takes sys.executable, and so does everything where there is no Linux.
"""
import os
import signal
import socket
import sys

SOCKET = 'POCKETGRPO_TESTS_SOCKET'


def read_all(connection, n):
    data = b''
    while len(data) < n:
        data += connection.recv(n - len(data)) or sys.exit('warm.py: the other side is gone')
    return data


def ask():
    """The caller's side: ends as the fork ends."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    request = repr((sys.argv[1:], os.getcwd(), dict(os.environ))).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, 'big')], [0, 1, 2])
    connection.sendall(request)
    for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(s, lambda number, frame: connection.send(bytes([number])))
    status = int.from_bytes(read_all(connection, 2), 'big', signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(parent):
    """
    Forks for every caller a process that sees to it, until whoever started this one is gone. The socket is where standard input would be.
    """
    import gc
    import importlib

    for name in (
        'concurrent.futures.thread',
        'http.server',
        'jinja2.sandbox',
        'numpy',
        'safetensors.torch',
        'symtable',
        'tokenizers',
        'torch._dynamo',
        'torch.distributed.fsdp',
        'torch.distributed.run',
        'tqdm.auto',
        'triton',
        'xml.parsers.expat',
    ):  # what takes the seconds
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    server = socket.socket(fileno=0)
    while os.getppid() == parent:
        if select.select([server], [], [], 1.0)[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return see_to(connection)
            connection.close()
    os._exit(0)


def see_to(connection):
    """Forks the process that a caller asks for, passes signals on, and says how it ended."""
    import threading
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    argv, folder, environment = eval(read_all(connection, int.from_bytes(size, 'big')))
    job = os.fork()
    if job == 0:
        connection.close()
        return become(argv, folder, environment, files)
    for file in files:
        os.close(file)

    def pass_on():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            while told := connection.recv(1):
                os.kill(job, told[0])
            os.kill(job, signal.SIGKILL)  # the caller was killed
    threading.Thread(target=pass_on, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(status.to_bytes(2, 'big', signed=True))
    os._exit(0)


def become(argv, folder, environment, files):
    """
    What `python *argv` does, in this process, which is a fork. At its end it does not take a second to tear down all that was imported.
    """
    import atexit
    import runpy
    import threading
    for to, file in enumerate(files):
        os.dup2(file, to)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    unbuffered = argv[0] == '-u'
    argv = argv[unbuffered:]
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),
        open(1, 'w', buffering=1 if unbuffered or os.isatty(1) else -1, closefd=False),
        open(2, 'w', buffering=1, closefd=False),
    )
    sys.path[:1] = [
        folder if argv[0] in ('-m', '-c') else os.path.dirname(os.path.realpath(argv[0])),
        *filter(None, environment.get('PYTHONPATH', '').split(os.pathsep)),
    ]
    sys.argv, status = argv[argv[0] == '-m':], 0
    if argv[0] == '-m' and argv[1] in ('tools.learn_mirror', 'tools.compare'):  # they start train_grpo.py
        sys.executable = PYTHON
    try:
        if argv[0] == '-m':
            runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
        elif argv[0] == '-c':
            sys.argv = ['-c', *argv[2:]]
            exec(argv[1], {'__name__': '__main__'})
        else:
            runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        if status and status is not e.code:
            print(e.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def start(folder):
    """Starts a server, which ends with this process, and says by the environment where it is; torchrun hears of PYTHON too."""
    import subprocess
    path = os.path.join(folder, 'warm')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        subprocess.Popen(
            [sys.executable, os.path.realpath(__file__), 'serve', str(os.getpid())], stdin=server, env=os.environ | {'OMP_NUM_THREADS': '1'}
        )
    os.environ |= {SOCKET: path, 'PYTHON_EXEC': PYTHON}


PYTHON = os.path.realpath(__file__) if sys.platform == 'linux' else sys.executable

if __name__ == '__main__':
    if sys.argv[1] == 'serve':
        import contextlib
        import select
        serve(int(sys.argv[2]))
    else:
        ask()
