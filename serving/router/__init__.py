"""The data plane: worker processes that carry bytes between clients and engines, and never wait for anything else.

No database, framework, metrics library or log in here; what a worker knows comes as one immutable `table.Table`, what
it did goes out as `registry.usage.RequestRecord`.
"""

from serving import native

if (_compiled := native.folder()) is not None:
    __path__.insert(0, str(_compiled))
