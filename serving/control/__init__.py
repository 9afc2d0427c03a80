"""The control plane: it thinks, and never carries a client's bytes.

Owns: applying configurations, publishing tables to the workers, ingesting what they did, the admin API, and the loop
that holds them together. Its death costs no request; started again it adopts what still runs.
"""
