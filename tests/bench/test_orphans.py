"""A process that was started for a bench does not outlive it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.arguments import ROOT

PROGRAM = """
import multiprocessing, os, sys, time
from pathlib import Path
from bench.orphans import end_with_parent

def work(closed):
    end_with_parent(Path(closed).touch)
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1],)).start()
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_process_closes_and_ends_when_its_parent_is_killed(name: str, tmp_path: Path) -> None:
    program, closed = tmp_path / "program.py", tmp_path / "closed"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, program, closed], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline())
        parent.send_signal(getattr(signal, name))
        parent.stdout.read()  # ends when the last process that could write there has ended
    assert closed.exists()
