"""What a version is worth: suites, scorers, runs, paired comparison, output drift, verdicts, reports.

A client of the HTTP API: it never imports `serving`.
"""
