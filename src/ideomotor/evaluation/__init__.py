"""The report: video metrics, roll-outs, statistics, page."""
