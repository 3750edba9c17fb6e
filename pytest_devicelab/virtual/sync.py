"""The sync service: files and folders over one stream, in both versions of its messages.

Version 1 is what adbutils and pure-python-adb speak, version 2 the adb binary. The path of every request is
translated by `paths`, so nothing a host asks for lies outside of the device's root folder.

Source: AOSP packages/modules/adb, SYNC.TXT and file_sync_protocol.h.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from pytest_devicelab.matrix.specs import Phase
from pytest_devicelab.virtual.adbd import Stream
from pytest_devicelab.virtual.faults.storage import Storage
from pytest_devicelab.virtual.paths import resolve, resolve_writable

_MAX_PATH_BYTES = 1024
_MAX_CHUNK_BYTES = 64 * 1024
_CHUNKS_A_PACKET = 15  # the most whole chunks, with their headers, that fit into a payload of 1 MiB

_REQUEST = struct.Struct("<4sI")
_STAT_V1 = struct.Struct("<4s3I")  # id, mode, size, mtime
_ENTRY_V1 = struct.Struct("<4s4I")  # id, mode, size, mtime, length of the name
# id, error, dev, ino, mode, nlink, uid, gid, size, atime, mtime, ctime
_STAT_V2 = struct.Struct("<4sIQQIIIIQqqq")
_NAME_LENGTH = struct.Struct("<I")
_SEND_V2 = struct.Struct("<4sII")  # id, mode, flags


class SyncError(Exception):
    """The host broke the rules of the service, so its next message cannot be found any more."""


class SyncService:
    """Serves one `sync:` stream of a device.

    Args:
        root: the device's root folder.
        storage: where pushed bytes go, and what happens to them there.
        saw: told when a push or a pull begins.
    """

    def __init__(self, root: Path, storage: Storage, saw: Callable[[Phase], None]) -> None:
        self._root = root
        self._storage = storage
        self._saw = saw
        self._requests: dict[bytes, Callable[[Stream, str], Awaitable[None]]] = {
            b"STAT": self._stat_v1,
            b"STA2": self._stat_v2,
            b"LST2": self._lstat_v2,
            b"LIST": self._list_v1,
            b"LIS2": self._list_v2,
            b"SEND": self._send_v1,
            b"SND2": self._send_v2,
            b"RECV": self._receive,
            b"RCV2": self._receive_v2,
        }

    async def __call__(self, stream: Stream) -> None:
        """Answer requests until the host says QUIT, closes the stream, or breaks the rules."""
        try:
            while await self._answer(stream):
                pass
        except SyncError as error:
            await _fail(stream, str(error))

    async def _answer(self, stream: Stream) -> bool:
        name, size_bytes = _REQUEST.unpack(await stream.read_exactly(_REQUEST.size))
        if name == b"QUIT":
            return False
        request = self._requests.get(name)
        if request is None or size_bytes > _MAX_PATH_BYTES:
            raise SyncError(f"bad request {name!r} of {size_bytes} bytes")
        await request(stream, os.fsdecode(await stream.read_exactly(size_bytes)))
        return True

    async def _stat_v1(self, stream: Stream, path: str) -> None:
        mode, size_bytes, mtime_s = 0, 0, 0
        with suppress(OSError):
            found = resolve(self._root, path, follow=False).lstat()
            mode, size_bytes, mtime_s = found.st_mode, found.st_size, int(found.st_mtime)
        await stream.write(_STAT_V1.pack(b"STAT", mode, size_bytes & 0xFFFFFFFF, mtime_s & 0xFFFFFFFF))

    async def _stat_v2(self, stream: Stream, path: str) -> None:
        await stream.write(self._attributes(b"STA2", lambda: resolve(self._root, path).lstat()))

    async def _lstat_v2(self, stream: Stream, path: str) -> None:
        await stream.write(self._attributes(b"LST2", lambda: resolve(self._root, path, follow=False).lstat()))

    @staticmethod
    def _attributes(name: bytes, look: Callable[[], os.stat_result]) -> bytes:
        try:
            found = look()
        except OSError as error:
            return _STAT_V2.pack(name, error.errno or errno.EIO, *[0] * 10)
        times = int(found.st_atime), int(found.st_mtime), int(found.st_ctime)
        owner = found.st_nlink, found.st_uid, found.st_gid
        return _STAT_V2.pack(
            name, 0, found.st_dev, found.st_ino, found.st_mode, *owner, found.st_size, *times
        )

    def _names(self, path: str) -> tuple[Path, list[str]]:
        folder = resolve(self._root, path)
        try:
            return folder, [".", "..", *sorted(entry.name for entry in folder.iterdir())]
        except OSError:
            return folder, []  # the protocol has no way to say why a listing is empty

    async def _list_v1(self, stream: Stream, path: str) -> None:
        reply = bytearray()
        with suppress(OSError):
            folder, names = self._names(path)
            for name in names:
                with suppress(OSError):
                    found = (folder / name).lstat()
                    encoded = os.fsencode(name)
                    figures = found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF
                    reply += _ENTRY_V1.pack(b"DENT", *figures, len(encoded)) + encoded
        await stream.write(reply + _ENTRY_V1.pack(b"DONE", 0, 0, 0, 0))

    async def _list_v2(self, stream: Stream, path: str) -> None:
        reply = bytearray()
        with suppress(OSError):
            folder, names = self._names(path)
            for name in names:
                encoded = os.fsencode(name)
                reply += self._attributes(b"DNT2", (folder / name).lstat)
                reply += _NAME_LENGTH.pack(len(encoded)) + encoded
        await stream.write(reply + _STAT_V2.pack(b"DONE", *[0] * 11) + _NAME_LENGTH.pack(0))

    async def _send_v1(self, stream: Stream, path_and_mode: str) -> None:
        path, _, mode = path_and_mode.rpartition(",")
        if not path or not mode.isdecimal():
            await _discard_file(stream)
            await _fail(stream, "the path of a SEND must end in ',MODE'")
            return
        await self._store(stream, path, int(mode))

    async def _send_v2(self, stream: Stream, path: str) -> None:
        _name, mode, flags = _SEND_V2.unpack(await stream.read_exactly(_SEND_V2.size))
        if flags:
            await _discard_file(stream)
            await _fail(stream, f"flags {flags:#x}: compression and dry runs were not offered")
            return
        await self._store(stream, path, mode)

    async def _store(self, stream: Stream, path: str, mode: int) -> None:
        self._saw("push")
        try:
            if stat.S_ISLNK(mode):
                await self._store_link(stream, path)
            else:
                await self._store_file(stream, path, mode)
        except OSError as error:
            await _fail(stream, f"couldn't create file: {error.strerror}")
        else:
            await stream.write(_REQUEST.pack(b"OKAY", 0))

    async def _store_file(self, stream: Stream, path: str, mode: int) -> None:
        try:
            where, descriptor = self._create(path)
        except OSError:
            await _discard_file(stream)
            raise
        with io.FileIO(descriptor, "w") as file:
            try:
                mtime_s = await _receive_file(stream, self._storage.writer(file.write))
            except BaseException:
                where.unlink(missing_ok=True)
                raise
            # As adbd: group and others get what the owner has.
            owner = mode & 0o700
            os.fchmod(descriptor, owner | owner >> 3 | owner >> 6)
            os.utime(descriptor, (mtime_s, mtime_s))

    def _create(self, path: str) -> tuple[Path, int]:
        where = self._free_place(path, follow=True)
        return where, os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    def _free_place(self, path: str, *, follow: bool) -> Path:
        """Return where to create a file.

        One that was there is unlinked, not truncated, as adbd does: who runs or reads it keeps its old bytes.
        """
        where = resolve_writable(self._root, path, follow=follow)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.unlink(missing_ok=True)
        return where

    async def _store_link(self, stream: Stream, path: str) -> None:
        try:
            where = self._free_place(path, follow=False)
        except OSError:
            await _discard_file(stream)
            raise
        target = bytearray()

        def append(piece: memoryview) -> int:
            if len(target) + len(piece) > _MAX_PATH_BYTES:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            target.extend(piece)
            return len(piece)

        await _receive_file(stream, append)
        where.symlink_to(os.fsdecode(bytes(target).rstrip(b"\0")))

    async def _receive_v2(self, stream: Stream, path: str) -> None:
        _name, flags = _REQUEST.unpack(await stream.read_exactly(_REQUEST.size))
        if flags:
            await _fail(stream, f"flags {flags:#x}: compression was not offered")
        else:
            await self._receive(stream, path)

    async def _receive(self, stream: Stream, path: str) -> None:
        self._saw("pull")
        try:
            # O_NONBLOCK: opening a named pipe must not stop the whole lab.
            descriptor = os.open(resolve(self._root, path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with io.FileIO(descriptor, "r") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                while packet := _read_chunks(file.readinto):
                    await stream.write(packet)
        except OSError as error:
            await _fail(stream, f"open failed: {error.strerror}")
        else:
            await stream.write(_REQUEST.pack(b"DONE", 0))


def _read_chunks(readinto: Callable[[memoryview], int | None]) -> memoryview:
    """Return the next DATA messages of a file, as many as one packet holds; empty at its end."""
    packet = memoryview(bytearray(_CHUNKS_A_PACKET * (_REQUEST.size + _MAX_CHUNK_BYTES)))
    end = 0
    for _ in range(_CHUNKS_A_PACKET):
        start = end + _REQUEST.size
        size_bytes = readinto(packet[start : start + _MAX_CHUNK_BYTES])
        if not size_bytes:
            break
        _REQUEST.pack_into(packet, end, b"DATA", size_bytes)
        end = start + size_bytes
    return packet[:end]


async def _receive_file(stream: Stream, write: Callable[[memoryview], int]) -> int:
    """Hand the bytes of every DATA message to `write`, which says how many it took.

    Returns:
        The modification time, in seconds, of the DONE that ends them.

    Raises:
        OSError: the first one `write` raised; only after DONE, for the host looks for a FAIL no sooner.
        SyncError: neither DATA nor DONE came.
    """
    failure: OSError | None = None
    while True:
        name, value = _REQUEST.unpack(await stream.read_exactly(_REQUEST.size))
        if name == b"DONE":
            if failure:
                raise failure
            return int(value)
        if name != b"DATA" or value > _MAX_CHUNK_BYTES:
            raise SyncError(f"expected DATA of at most {_MAX_CHUNK_BYTES} bytes, not {name!r} of {value}")
        while value:
            piece = await stream.read(value)
            value -= len(piece)
            try:
                while piece and not failure:
                    piece = piece[write(piece) :]
            except OSError as error:
                failure = error


async def _discard_file(stream: Stream) -> None:
    await _receive_file(stream, len)


async def _fail(stream: Stream, reason: str) -> None:
    message = reason.encode()
    await stream.write(_REQUEST.pack(b"FAIL", len(message)) + message)
