"""The child process in which a model library runs: it answers over a pipe and is allowed to crash.

Owns: everything that imports torch, transformers or llama_cpp. Never: importing the rest of the project; it runs in the
environment of the model libraries, which need not have ours. Nothing here may import more than the standard library and
numpy at module level.
"""
