"""What can be told about an image without decoding it: its format (`formats`) and its size (`dimensions`).

The file system and the store call this with plaintext they hold; it reads nothing by itself, changes nothing,
and damaged images are its everyday input.
"""
