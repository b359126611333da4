"""Who may open a store: where secrets come from (`secrets`) and what opens with them (`keyring`).

The store calls `keyring` with the bytes of its header and its key slots; the command line calls `secrets`.
Nothing here knows the layout of a store on disk, and nothing above may see a slot key.
"""
