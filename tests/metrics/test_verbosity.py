"""The progress bar: there on a terminal, and nowhere else."""

from __future__ import annotations

import pytest

from cache_dit.metrics.verbosity import progress


@pytest.mark.parametrize(("terminal", "total", "shown"), [(True, 3, True), (True, None, True), (False, 3, False)])
def test_long_work_has_a_bar_on_a_terminal(
    terminal: bool,
    total: int | None,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    assert list(progress("abc", name="sharpness of [pictures]", total=total)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert ("sharpness of [pictures]" in captured.err) == shown
    assert captured.out == ""
    if not shown:
        assert captured.err == ""


def test_a_single_item_has_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(progress("a", name="sharpness", total=1)) == ["a"]
    assert capsys.readouterr().err == ""
