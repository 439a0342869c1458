"""The table of what failures cost."""

from benchmarks.outages import Outage, text


def test_the_table_has_medians_all_ratios_and_the_worst_of_the_rest() -> None:
    outages = [
        Outage("server killed", 4.0, 5.0, 30.0, 1.0, 2.0),
        Outage("server killed", 5.0, 5.0, 29.0, 3.0, -1.0),
        Outage("server killed", 6.0, 9.0, 30.0, 2.0, 0.0),
        Outage("network cut", 4.0, 4.0, 30.0, 4.0, 0.0),
    ]
    killed, cut = text(outages).splitlines()[2:]
    assert killed == "| server killed | 5.00 | 5.00 | 1.25 (1.25, 1.00, 1.50) | 29.0 | 3.0 | 2 |"
    assert cut == "| network cut | 4.00 | 4.00 | 1.00 (1.00) | 30.0 | 4.0 | 0 |"
