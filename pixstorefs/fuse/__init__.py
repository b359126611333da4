"""The pyfuse3 adapter: translates between the kernel's requests and `fs/`.

Together with `daemon/` it is the only asynchronous code.
"""
