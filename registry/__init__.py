"""What exists: models, immutable versions, artifacts, aliases, routes, audit, and the ledger of what was used.

The bottom layer: it imports none of the other three packages.
"""
