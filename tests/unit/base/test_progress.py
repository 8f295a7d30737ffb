"""Progress prints plain lines where there is no terminal."""

from __future__ import annotations

import pytest

from coembed import progress


def test_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    assert list(progress.track(range(3), total=3, label="Reading", unit="files")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Reading: 1/3 files")
    assert "\r" not in "".join(lines)
    assert lines[-1].startswith("Reading: 3/3 files")
    assert len(lines) == 3, "the end is said once"


def test_a_note_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    task = progress.tracker(total=None, label="Training", unit="steps")
    task.note("loss 1.25")
    task.advance(5)
    task.close()
    task.close()
    assert capsys.readouterr().err.count("loss 1.25") == 1
