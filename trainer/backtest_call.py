"""Stands for one run of the trainer's command line that a warm process carries out.

It is started as the trainer would be and ends as the trainer ends, so who supervises it need not
know better: the warm process gets this one's standard input, output and error and its arguments,
SIGTERM is passed on, and the exit code, or the signal, is that of the work. If this process is
killed, the work is killed too.

A script of the standard library alone, to be run with `python -I -S`: it is up in some ten
milliseconds. Usage: backtest_call.py SOCKET LIMITS ARGUMENTS…, where LIMITS is a JSON object that
may have `nice` (added to the priority) and `memory_mb` (of address space; 0: no limit).
"""

import json
import os
import signal
import socket
import sys

FAILED = 1


def call(path: str, limits: str, arguments: list[str]) -> int:
    """The exit code; does not return where the work was ended by a signal. OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect(path)
        signal.signal(signal.SIGTERM, lambda *_: link.send(b"stop"))
        job = {"arguments": arguments, **json.loads(limits)}
        socket.send_fds(link, [json.dumps(job).encode()], [0, 1, 2])
        answer = link.recv(64).decode()
    if not answer:
        print("error: the process that keeps trainers warm has ended", file=sys.stderr)
        return FAILED
    how, number = answer.split()
    if how == "signal":
        if int(number) not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(int(number), signal.SIG_DFL)
        os.kill(os.getpid(), int(number))
    return int(number)


if __name__ == "__main__":
    try:
        code = call(sys.argv[1], sys.argv[2], sys.argv[3:])
    except OSError as error:
        print(f"error: no warm trainer at {sys.argv[1]}: {error}", file=sys.stderr)
        code = FAILED
    sys.exit(code)
