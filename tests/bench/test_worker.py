"""What is asked of a worker comes back as a result or as an error, and in time."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.counting import WorkMeter
from bench.peers import client
from bench.peers.client import Peer, PeerError, PeerUnavailableError, Workers
from cache_dit.demo import load_pipeline
from cache_dit.demo.pipeline import MODEL_FOLDER

CAPTION, SEED, STEPS = "noto emoji of cat face", 3, 2


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """A worker under our own interpreter: without a cache it needs diffusers alone."""
    with Peer(sys.executable) as worker:
        yield worker


def scripted(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Peer:
    """A worker that is another program."""
    program = folder / "worker.py"
    program.write_text(script, encoding="utf-8")
    monkeypatch.setattr(client, "WORKER", program)
    return Peer(sys.executable, timeout=20)


def test_what_is_raised_there_is_told_here_and_the_worker_goes_on(peer: Peer) -> None:
    with pytest.raises(
        PeerError, match=r"(?s)asked to platform:node, the peer raised TypeError: .*unexpected.*\nworker.py:"
    ):
        peer.ask("platform:node", sauce="hot")
    assert peer.ask("platform:python_version") == sys.version.partition(" ")[0]


def beside(monkeypatch: pytest.MonkeyPatch, folder: Path, measures: str) -> Peer:
    """The real worker with other measures beside it."""
    package = folder / "site-packages" / "bench"
    (package / "peers").mkdir(parents=True)
    (package / "measures.py").write_text(measures, encoding="utf-8")
    real = client.WORKER.read_text(encoding="utf-8")
    return scripted(monkeypatch, package / "peers", real)


def test_it_tells_where_something_was_raised_and_quotes_no_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measures = "import warnings\ndef run(end):\n    warnings.warn('mind')  # secret\n    return 1 / end  # secret\n"
    with beside(monkeypatch, tmp_path, measures) as worker:
        with pytest.raises(PeerError) as raised:
            worker.ask("bench.measures:run", end=0)
        assert str(raised.value).endswith("measures.py:4 in run")
        worker._process.kill()
        with pytest.raises(PeerError, match=r"(?s)it said:\nUserWarning: mind") as died:
            worker.ask("bench.measures:run", end=1)
    assert "secret" not in f"{raised.value}{died.value}"


def test_its_uncached_picture_is_ours_bit_for_bit_and_so_is_its_work(peer: Peer, tmp_path: Path) -> None:
    out = tmp_path / "pixels.npy"
    assert peer.ask("bench.pictures:load", folder=str(MODEL_FOLDER)) == 12
    asked = {"caption": CAPTION, "seed": SEED, "steps": STEPS, "counted": True, "clock": "processor"}
    told = peer.ask("bench.pictures:draw", out=str(out), **asked)
    pipe = load_pipeline(progress=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with WorkMeter(pipe.transformer) as meter:
            generator = torch.Generator().manual_seed(SEED)
            output = pipe(CAPTION, num_inference_steps=STEPS, generator=generator, output_type="np")
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(np.load(out), output.images[0])
    assert (told["work"], told["blocks"]) == (meter.work, 12 * 2 * STEPS)
    assert told["seconds"] > 0


def test_no_answer_in_time_is_an_error_and_ends_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "import sys, time\nprint('thinking', file=sys.stderr, flush=True)\ntime.sleep(60)"
    with scripted(monkeypatch, tmp_path, script) as worker:
        with pytest.raises(PeerError, match=r"(?s)did not answer within 0\.5 s; it said:\nthinking"):
            worker.ask("platform:node", timeout=0.5)
        with pytest.raises(PeerError, match="has ended"):
            worker.ask("platform:node")


def test_a_worker_that_dies_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        scripted(monkeypatch, tmp_path, "import sys\nsys.exit('out of luck')") as worker,
        pytest.raises(PeerError, match=r"(?s)has ended \(1\); it said:\nout of luck"),
    ):
        worker.ask("platform:node")


def test_what_libraries_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measures = "import os\ndef run(n):\n    print('chatter')\n    os.write(1, b'more\\n')\n    return n + 1\n"
    with beside(monkeypatch, tmp_path, measures) as worker:
        assert [worker.ask("bench.measures:run", n=1), worker.ask("bench.measures:run", n=2)] == [2, 3]


def test_a_worker_ends_when_the_one_who_asks_is_gone() -> None:
    with Peer(sys.executable) as worker:
        worker._pipe.close()
        assert worker._process.wait(timeout=60) == 0


def test_an_environment_that_cannot_be_made_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(self: object) -> Path:
        tried.append(self)
        raise PeerUnavailableError("no index")

    monkeypatch.setattr("bench.peers.client.Environment.make", fail)
    with Workers(1) as workers:
        for _ in range(2):
            with pytest.raises(PeerUnavailableError, match="no index"):
                workers.run("1.2.0", {})
    assert len(tried) == 1
    assert workers.unavailable == {"1.2.0": "no index"}
