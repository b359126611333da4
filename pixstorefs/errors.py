"""Every error pixstorefs raises: one class per reaction, with its errno and exit code.

`errno` is what a program on the mount sees; `exit_code` is what the command line ends with.
The message is for the person: what happened to which image or store, what it means for the
data, what to do next. POSIX refusals of the file system (ENOENT, ENOTEMPTY, ...) are plain
OSErrors: the errno *is* their meaning and no person reads them.
"""

import errno


class PixstoreError(Exception):
    """Base of all errors meant for people. Never raised itself."""

    errno = errno.EIO
    exit_code = 1


class InvalidInput(PixstoreError):
    """A value the caller gave cannot be used: nothing was changed."""

    errno = errno.EINVAL
    exit_code = 2


class StoreInUse(PixstoreError):
    """Another process owns the store; the message names its pid and mountpoint."""

    errno = errno.EBUSY
    exit_code = 3


class StoreClosed(PixstoreError):
    """The program closed the store before this call, or during it: nothing was changed.

    Apart from InvalidInput, which a server blames on whoever sent the data.
    """

    errno = errno.EBADF
    exit_code = 20


class WrongKey(PixstoreError):
    """No key slot of the store opens with the secret given, or none was given."""

    errno = errno.EACCES
    exit_code = 4


class KeysNotWritten(PixstoreError):
    """The keys could not be changed on the disk; the message says which are in effect. None is half done."""

    errno = errno.EIO
    exit_code = 14


class NotAStore(PixstoreError):
    """The directory is missing, or holds something that is not a store: it was left untouched."""

    errno = errno.ENOENT
    exit_code = 5


class MountpointUnusable(PixstoreError):
    """The mountpoint cannot be mounted on (a file, not empty, no rights, overlapping the store)."""

    errno = errno.ENOTDIR
    exit_code = 6


class NewerFormat(PixstoreError):
    """The store was written by a newer pixstorefs; this one would damage it and does not try."""

    errno = errno.EPROTONOSUPPORT
    exit_code = 7


class CorruptStore(PixstoreError):
    """The header, the key slots or the index are damaged; images may still be recoverable."""

    errno = errno.EIO
    exit_code = 8


class StoreNotWritable(PixstoreError):
    """The disk or the rights of the store allow reading only: nothing was changed."""

    errno = errno.EROFS
    exit_code = 17


class FuseUnavailable(PixstoreError):
    """The system cannot mount: no /dev/fuse, no fusermount3, or the kernel refused."""

    errno = errno.ENODEV
    exit_code = 9


class WrongInstallation(PixstoreError):
    """A library that pixstorefs needs is another one than it needs: nothing was opened."""

    errno = errno.ENOSYS
    exit_code = 19


class NoSpace(PixstoreError):
    """The disk under the store is full. What was saved before is intact."""

    errno = errno.ENOSPC
    exit_code = 10


class ImageNotFound(PixstoreError):
    """No image has this id (or path)."""

    errno = errno.ENOENT
    exit_code = 11


class CorruptImage(PixstoreError):
    """The object of one image is missing or its tags do not match; every other image works."""

    errno = errno.EIO
    exit_code = 12


class OutputFailed(PixstoreError):
    """What a command has to say could not be written; what it did is done all the same."""

    exit_code = 16


class SnapshotFailed(PixstoreError):
    """A snapshot could not be completed; the one before it is whole, and another run goes on."""

    exit_code = 15


class ReadOnlyStore(PixstoreError):
    """The store was opened read-only and the call would change it."""

    errno = errno.EROFS
    exit_code = 13


class NoRights(PixstoreError):
    """This user may not read or write a file that is needed. Whether it is intact nobody knows."""

    errno = errno.EACCES
    exit_code = 18

    @classmethod
    def to(cls, refused: OSError) -> "NoRights":
        """For what the kernel refused with EACCES or EPERM."""
        return cls(
            f"{refused.filename or 'a file'}: {refused.strerror}. Run the command as the user it belongs to, "
            "or have that user give you the rights. Nothing is known to be damaged"
        )
