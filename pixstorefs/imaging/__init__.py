"""What can be told of an image without decoding it: its format and its dimensions.

The file system and the store call this with plaintext they hold; it reads nothing by itself, changes nothing,
and damaged images are its everyday input.
"""
