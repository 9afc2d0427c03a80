"""Grafana dashboards as Python: what is committed under configs/grafana/dashboards is what these modules make.

`python -m monitoring.dashboards` writes the files anew.
"""
