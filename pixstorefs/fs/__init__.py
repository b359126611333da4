"""The file system: POSIX meaning on top of the store. Synchronous, without SQL, ciphers or FUSE,
except for `operations`, which translates between the kernel and the rest and does nothing else.
"""
