"""Grafana dashboards as Python: what is committed under configs/grafana/dashboards is what these modules make.

`python -m monitoring.dashboards` writes the files anew. Only that needs grafana-foundation-sdk; `queries` does not.
"""

from monitoring.dashboards.expressions import needs, panels, queries

__all__ = ["needs", "panels", "queries"]
