"""The benchmark of the wrapper's cost: that it measures what it says. Its times are not tested."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import overhead
from bench.common import QUICK, make_inputs, make_transformer, median_ratio, ratio_of_medians, twin, without_blocks


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """The benchmark silences the package's log; the tests after it read it."""
    logger = logging.getLogger("cache_dit")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster alone; afterwards, other tests find their threads again."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_twin_shares_all_weights_and_no_module():
    model = make_transformer(QUICK)
    other = twin(model)
    mine, others = (dict(m.named_parameters()) for m in (model, other))
    assert all(mine[name] is others[name] for name in mine)
    assert not set(model.modules()) & set(other.modules())


@torch.inference_mode()
def test_a_model_without_blocks_runs_the_rest_alone():
    model = make_transformer(QUICK)
    ran: list[str] = []
    hollow = without_blocks(model, keep=1)
    for name, block in hollow.named_modules():
        if name.endswith(("blocks.0", "blocks.1")):
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    hollow(**make_inputs(QUICK)[0])
    assert ran == ["transformer_blocks.0"]
    assert len(model.single_transformer_blocks) == QUICK.single


def test_ratios_are_of_pairs_and_of_medians():
    pairs = [(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)]
    assert median_ratio(pairs) == 3.0
    assert ratio_of_medians(pairs) == 4.0


def test_live_state_counts_what_is_really_alive():
    class Keeps(torch.nn.Module):
        kept: tuple[torch.Tensor, ...] = ()

        def forward(self) -> None:
            self.kept = (*self.kept[-1:], torch.zeros(1000))

    assert overhead._most_alive(Keeps(), [{}] * 4) == 2 * 4000


def test_a_quick_run_prints_and_saves_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "results" / "overhead.json"
    overhead.main(["--quick", "--threads", "1", "--json", str(path)])
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["machine"]["versions"]["torch"] == torch.__version__
    names = [finding["name"] for finding in saved["findings"]]
    assert len(names) == len(set(names)) == 17
    by_blocks = [finding["details"] for finding in saved["findings"] if "by blocks" in finding["name"]]
    assert [details["ideal_by_blocks"] for details in by_blocks] == [2.0, 1.5]
    assert all(finding["reached"] for finding in saved["findings"] if finding["unit"] == "features")
    assert "wrapped ÷ bare" in capsys.readouterr().out


def test_a_quick_run_leaves_the_saved_results_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(overhead, "RESULTS", tmp_path / "overhead.json")
    monkeypatch.setattr(overhead, "measure", lambda size: [])
    overhead.main(["--quick"])
    assert not (tmp_path / "overhead.json").exists()
    overhead.main([])
    assert (tmp_path / "overhead.json").exists()
