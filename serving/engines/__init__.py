"""The engines: processes that run one version each and speak the OpenAI API on loopback.

Owns: command line from manifest → process → readiness → capabilities, and keeping them alive. Never: a client's bytes,
traffic decisions. Nothing is imported here, so that an engine's child process starts quickly.
"""
