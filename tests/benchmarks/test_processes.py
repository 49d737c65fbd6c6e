"""A server's processor time is that of all its processes, and none of them outlives it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import NotStartedError, ServerProcess, killed_if_interrupted, session_cpu_s

BURN_S = 0.3
# A server whose child burns and lives on, and which waited for another child that burned.
FAMILY = f"""
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < {BURN_S}: pass\\n"
subprocess.run([sys.executable, "-c", burn], check=True)
stay = burn + "print('burned', flush=True)\\ntime.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stay], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_processor_time_counts_children_alive_and_dead(tmp_path: Path) -> None:
    own = session_cpu_s(os.getsid(0))
    with ServerProcess([sys.executable, "-c", FAMILY], tmp_path) as server:
        server.first_line()
        used = server.cpu_s()
        assert used >= 2 * BURN_S - 0.05  # /proc counts in hundredths of a second
        assert used < 2 * BURN_S + 10  # and not somebody else's, such as a test's of long ago
        assert server.resident_bytes() > 2**20
    assert session_cpu_s(os.getsid(0)) >= own


def test_a_child_does_not_outlive_its_server(tmp_path: Path) -> None:
    with ServerProcess([sys.executable, "-c", FAMILY], tmp_path) as server:
        child = int(server.first_line())
        assert Path(f"/proc/{child}").exists()
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or ") Z " in state.read_text()  # whoever adopted it may be slow


def test_an_interrupt_while_a_process_starts_ends_it(tmp_path: Path) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), killed_if_interrupted() as started:
            signal.raise_signal(signal.SIGINT)
            sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
            started.append(subprocess.Popen(sleep, start_new_session=True))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert started[0].returncode == -signal.SIGKILL


def test_a_server_that_ends_tells_its_last_words(tmp_path: Path) -> None:
    script = "import sys; sys.exit('the port is taken')"
    with (
        ServerProcess([sys.executable, "-c", script], tmp_path) as server,
        pytest.raises(NotStartedError, match="ended with 1: the port is taken"),
    ):
        server.first_line()
