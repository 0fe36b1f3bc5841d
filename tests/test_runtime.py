"""Progress where there is no terminal."""

from robgib import runtime


def test_progress_in_a_file_is_lines_of_text(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now[0])
    with runtime.progress_bars(True, always=True) as report:
        for done in range(0, 101):
            report("attacking", done, 100, "pgd")
            report("attacking at eps=0.1", done, 100)
            now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "attacking: 0/100 (pgd)",
        "attacking: 30/100 (pgd)",
        "attacking: 60/100 (pgd)",
        "attacking: 90/100 (pgd)",
        "attacking: 100/100, 100 s (pgd)",
    ]


def test_no_progress_is_nothing(capsys):
    with runtime.progress_bars(False, always=True) as report:
        assert report is None
    with runtime.progress_bars(True) as report:
        assert report is None  # no terminal, and not asked for
    assert capsys.readouterr().err == ""
