"""The operations of the Python API, timed: one line with a phase's name in, one with its seconds out.

python -m benchmark.api_client STORE SIZE_BYTES COUNT close|sync
"""

import random
import sys
import time

from pixstorefs import open_store
from pixstorefs.api import ImageStore
from pixstorefs.keys.secrets import create_keyfile


class Phases:
    """What Pixstore offers, on the same images. `synced`: nothing returns before it survives power loss."""

    def __init__(self, images: ImageStore, size_bytes: int, *, synced: bool) -> None:
        source = random.Random("pixstorefs api")
        self._images, self._synced = images, synced
        self._first, self._second = (b"\xff\xd8\xff" + source.randbytes(size_bytes - 3) for _ in range(2))
        self._ids: list[str] = []

    def save(self, count: int) -> None:
        for _ in range(count):
            self._ids.append(self._images.save_image(self._first, "bench").id)
            self._finish()

    def update(self, count: int) -> None:
        for image_id in self._ids:
            self._images.update_image(image_id, self._second)
            self._finish()

    def delete(self, count: int) -> None:
        for image_id in self._ids:
            assert self._images.delete_image(image_id)
            self._finish()
        self._ids.clear()

    def _finish(self) -> None:
        if self._synced:
            self._images.sync()


def main(store: str, size_bytes: str, count: str, durability: str) -> None:
    keyfile = f"{store}/keyfile"
    create_keyfile(keyfile)
    with open_store(f"{store}/store", keyfile=keyfile) as images:
        phases = Phases(images, int(size_bytes), synced=durability == "sync")
        for phase in ("save", "update", "delete"):
            getattr(phases, phase)(3)
        print("ready", flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            getattr(phases, line.strip())(int(count))
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
