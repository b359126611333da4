"""The ciphertext: sealed segments, objects, journal and spill.

Only `sealing` encrypts, besides `keys/`.
"""
