"""The store: atomic operations on images and names, and when they are durable.

`fs` builds the file system on `Store`, the Python API is `api.ImageStore`; both open it through `opening`.
Only `barrier` decides when something is durable.
"""

from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.store import Store

__all__ = ["Store", "open_unlocked"]
