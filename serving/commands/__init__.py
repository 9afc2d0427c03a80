"""The commands of `modelyard`, a module each, imported when called.

Owns: arguments, output, asking the admin API. Never: deciding or changing anything by itself while a yard runs.
"""
