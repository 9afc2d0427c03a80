"""The commands of `modelyard eval`, a module each; cli.py registers them."""
