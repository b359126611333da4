"""The life of a mount: the mountpoint, the background process, its log, its signals, its end.

Only `cli/` calls this package. Together with `fuse/` it is all that knows FUSE and trio.
Nothing here imports either at the top except `serve`, so that a refused command answers quickly.
"""
