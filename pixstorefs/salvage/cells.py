"""The rows that stand on decrypted pages, whether a table still leads to them or not.

Layout of pages, cells and records: https://sqlite.org/fileformat2.html
"""

from collections.abc import Iterator
from typing import Any

from pixstorefs.index.log import PAGE_SIZE_BYTES
from pixstorefs.salvage.pages import USABLE_BYTES, Pages

_INTERIOR_INDEX, _LEAF_INDEX, _LEAF_TABLE = 2, 10, 13


def rows(pages: Pages) -> Iterator[tuple[bool, tuple[Any, ...]]]:
    """Every row of every page: whether it is of a table with row ids, and its columns.

    The row id comes in place of a first column that is NULL (an INTEGER PRIMARY KEY). A row that goes on in
    a page that is lost is left out.
    """
    for page in pages.only or range(1, len(pages.data) // PAGE_SIZE_BYTES + 1):
        if page in pages.lost:
            continue
        start = (page - 1) * PAGE_SIZE_BYTES
        header = start + (100 if page == 1 else 0)
        kind = pages.data[header]
        if kind not in (_INTERIOR_INDEX, _LEAF_INDEX, _LEAF_TABLE):
            continue
        pointers = header + (12 if kind == _INTERIOR_INDEX else 8)
        for number in range(_u16(pages.data, header + 3)):
            position = start + _u16(pages.data, pointers + 2 * number)
            try:
                yield kind == _LEAF_TABLE, _row(pages, kind, position)
            except (ValueError, IndexError):
                continue


def _row(pages: Pages, kind: int, position: int) -> tuple[Any, ...]:
    if kind == _INTERIOR_INDEX:
        position += 4
    size_bytes, position = _varint(pages.data, position)
    row_id = None
    if kind == _LEAF_TABLE:
        row_id, position = _varint(pages.data, position)
        row_id -= (row_id >> 63) << 64
    columns = _columns(_payload(pages, kind, position, size_bytes))
    if row_id is not None and columns[0] is None:
        columns[0] = row_id
    return tuple(columns)


def _payload(pages: Pages, kind: int, position: int, size_bytes: int) -> bytes:
    most = USABLE_BYTES - 35 if kind == _LEAF_TABLE else (USABLE_BYTES - 12) * 64 // 255 - 23
    if size_bytes <= most:
        return pages.data[position : position + size_bytes]
    least = (USABLE_BYTES - 12) * 32 // 255 - 23
    local = least + (size_bytes - least) % (USABLE_BYTES - 4)
    local = local if local <= most else least
    parts = [pages.data[position : position + local]]
    missing = size_bytes - local
    page = _u32(pages.data, position + local)
    while missing > 0:
        start = (page - 1) * PAGE_SIZE_BYTES
        if page < 1 or page in pages.lost or start >= len(pages.data):
            raise ValueError("the row goes on in a lost page")
        parts.append(pages.data[start + 4 : start + 4 + min(missing, USABLE_BYTES - 4)])
        missing -= len(parts[-1])
        page = _u32(pages.data, start)
    return b"".join(parts)


def _columns(record: bytes) -> list[Any]:
    end, position = _varint(record, 0)
    types = []
    while position < end:
        kind, position = _varint(record, position)
        types.append(kind)
    columns: list[Any] = []
    for kind in types:
        size_bytes = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind] if kind < 12 else (kind - 12) // 2
        value = record[position : position + size_bytes]
        if len(value) != size_bytes:
            raise ValueError("the row is cut")
        position += size_bytes
        columns.append(_value(kind, value))
    return columns


def _value(kind: int, value: bytes) -> Any:
    if kind == 0:
        return None
    if kind in (8, 9):
        return kind - 8
    if kind <= 6:
        return int.from_bytes(value, "big", signed=True)
    if kind < 12:
        raise ValueError("no column of ours is a number with a fraction")
    return value if kind % 2 == 0 else value.decode()


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[position]
        position += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position
    return value << 8 | data[position], position + 1


def _u16(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "big")


def _u32(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "big")
