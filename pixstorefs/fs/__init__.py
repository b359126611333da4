"""The file system: POSIX meaning on top of the store.

Synchronous, without SQL, ciphers or FUSE.
"""
