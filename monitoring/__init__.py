"""What is happening: device readings, cost, metrics, live drift, dashboards, alerts.

Imports `registry` and nothing above it.
"""
