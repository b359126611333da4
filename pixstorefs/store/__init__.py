"""The store: sealed objects, the encrypted index, and the atomic operations on both. No FUSE here.

`fs` builds the file system on `Store`, the Python API is `images.ImageStore`; both open it through
`opening`. Only `index` speaks SQL, only `sealing` encrypts, only `barrier` decides when something is durable.
"""

from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.store import Store

__all__ = ["Store", "open_unlocked"]
