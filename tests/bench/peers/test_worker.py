"""What is asked of a worker comes back as a result or as an error, and in time."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.peers import client
from bench.peers.client import Peer, PeerError
from bench.peers.work import WorkMeter
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


def test_it_tells_its_versions(peer: Peer) -> None:
    told = peer.ask("versions")
    assert told["python"] == sys.version.partition(" ")[0]
    assert told["torch"] == torch.__version__


def test_an_unknown_request_is_an_error_that_names_the_known_ones(peer: Peer) -> None:
    with pytest.raises(PeerError, match="unknown request 'dance': it is one of versions, load, draw, cost and quit"):
        peer.ask("dance")


def test_what_is_raised_there_is_told_here_and_the_worker_goes_on(peer: Peer) -> None:
    with pytest.raises(
        PeerError, match=r"(?s)asked to versions, the peer raised TypeError: .*unexpected.*\nworker.py:"
    ):
        peer.ask("versions", sauce="hot")
    assert peer.ask("versions")


def test_it_tells_where_something_was_raised_and_quotes_no_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site-packages" / "theirs"
    package.mkdir(parents=True)
    (package / "cost.py").write_text(
        "import sys, warnings\ndef run(end):\n    warnings.warn('mind')  # secret\n    return 1 / end  # secret\n",
        encoding="utf-8",
    )
    real = client.WORKER.read_text(encoding="utf-8")
    with scripted(monkeypatch, package, real) as worker:
        with pytest.raises(PeerError) as raised:
            worker.ask("cost", end=0)
        assert str(raised.value).endswith("theirs/cost.py:4 in run")
        worker._process.kill()
        with pytest.raises(PeerError, match=r"(?s)it said:\nUserWarning: mind") as died:
            worker.ask("cost", end=1)
    assert "secret" not in f"{raised.value}{died.value}"


def test_nothing_is_drawn_before_a_pipeline_is_loaded(tmp_path: Path) -> None:
    with Peer(sys.executable) as worker, pytest.raises(PeerError, match="ask to load one first"):
        worker.ask("draw", out=str(tmp_path / "pixels.npy"), caption=CAPTION, seed=0)


def test_its_uncached_picture_is_ours_bit_for_bit_and_so_is_its_work(peer: Peer, tmp_path: Path) -> None:
    out = tmp_path / "pixels.npy"
    assert peer.ask("load", folder=str(MODEL_FOLDER)) == {"blocks": 12}
    told = peer.ask("draw", out=str(out), caption=CAPTION, seed=SEED, steps=STEPS)
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
    assert (told["work"], told["blocks"], told["calls"]) == (meter.work, 12 * 2 * STEPS, 2 * STEPS)
    assert told["seconds"] > 0


def test_an_unknown_part_of_a_cache_is_an_error(peer: Peer, tmp_path: Path) -> None:
    peer.ask("load", folder=str(MODEL_FOLDER))
    with pytest.raises(PeerError, match="unknown part of a cache: masks"):
        peer.ask("draw", out=str(tmp_path / "p.npy"), caption=CAPTION, seed=0, steps=STEPS, cache={"masks": {}})


ECHO = """
import json, sys
for line in sys.stdin:
    {body}
"""


def test_no_answer_in_time_is_an_error_and_ends_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "import sys, time\nprint('thinking', file=sys.stderr, flush=True)\nfor _ in sys.stdin: time.sleep(60)"
    with scripted(monkeypatch, tmp_path, script) as worker:
        with pytest.raises(PeerError, match=r"(?s)did not answer within 0\.5 s; it said:\nthinking"):
            worker.ask("versions", timeout=0.5)
        with pytest.raises(PeerError, match="the worker has ended"):
            worker.ask("versions")


def test_a_worker_that_dies_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = ECHO.format(body="sys.exit('out of luck')")
    with (
        scripted(monkeypatch, tmp_path, script) as worker,
        pytest.raises(PeerError, match=r"(?s)the worker ended \(1\); it said:\nout of luck"),
    ):
        worker.ask("versions")


@pytest.mark.parametrize("said", ["'hello'", "json.dumps([1])", "json.dumps(dict(id=99, ok=True, result=1))"])
def test_an_answer_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    with (
        scripted(monkeypatch, tmp_path, ECHO.format(body=f"print({said}, flush=True)")) as worker,
        pytest.raises(PeerError, match="the peer answered"),
    ):
        worker.ask("versions")


def test_what_libraries_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "cost.py").write_text(
        "import os\ndef run(n):\n    print('chatter')\n    os.write(1, b'more\\n')\n    return n + 1\n",
        encoding="utf-8",
    )
    real = client.WORKER.read_text(encoding="utf-8")
    with scripted(monkeypatch, folder, real) as worker:
        assert [worker.ask("cost", n=1), worker.ask("cost", n=2)] == [2, 3]
