"""bonsai/planning/published.py: what others have published, beside a measured rate."""

from bonsai.planning.published import PUBLISHED, beside_published


def test_a_measured_rate_stands_beside_the_published_ones():
    head, _, this, *others = beside_published(490e3, "NVIDIA H200").splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in (head, this)]
    assert cells[0][2:4] == ["tokens/s of one", "this run to it"]
    assert cells[1] == ["this run", "NVIDIA H200", "490,000", "1.00", "measured"]
    assert len(others) == len(PUBLISHED)
    assert [cell.strip() for cell in others[3].split("|")[2:5]] == ["H200", "490,000", "1.00"]


def test_each_figure_says_whose_it_is():
    for project, gpu, rate, source in PUBLISHED:
        assert project and gpu in ("A100", "H100", "H200") and rate > 1e5
        assert len(source) > len("derived"), "of what?"
