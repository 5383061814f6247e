"""The containers of archives: tar files, plain or compressed by gzip or zstd, and directories.

Writing is atomic: a container gets its name when it is complete. Reading trusts nothing: a member is a regular file below the
container, is read once, in order, and is never larger than its header tells; anything else is refused.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple, Protocol

from ..core import files
from ..core.errors import BalsamError, InputError
from ..core.subprocess_run import run

#: Endings of the names of tar files -> compression.
ENDINGS = {".tar": "", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tzst": "zstd"}
#: Endings that promise another format.
_FOREIGN = (".zip", ".bz2", ".xz", ".7z", ".gz", ".zst", ".rar")
#: The file that makes a directory an archive.
MARK = "manifest.json"
#: Bytes of a tar header with a long name, which tarfile reads into memory.
_MAX_HEADER_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_ZSTD_TIMEOUT_S = 24 * 3600.0
_NO_ZSTD = "pip install zstandard, or install the command zstd; or use .tar.gz."


class ArchiveError(BalsamError):
    """The archive cannot be read."""


class Member(NamedTuple):
    """A file of a container that is read."""

    name: str  # relative, without `..`
    size: int
    mode: int
    mtime: float
    file: IO[bytes]  # to be read before the next member


class ContainerWriter(Protocol):
    """A container that is written."""

    def add(self, name: str, file: IO[bytes], size: int, mode: int = 0o644, mtime: float = 0) -> None:
        """Add a file of exactly that size. Raises OSError, also if `file` has fewer bytes."""


# --- writing ----------------------------------------------------------------------------------------------------------


def compression_of(path: str) -> str | None:
    """Return the compression of the tar file that a name promises, "" for none; None: it is that of a directory.

    Raises:
        InputError: it promises another format.
    """
    lower = path.lower()
    if os.path.basename(path) == "-":
        raise InputError("An archive is a file or a directory, and cannot go through a pipe: give it a name.")
    for ending, compression in ENDINGS.items():
        if lower.endswith(ending):
            return compression
    if lower.endswith(_FOREIGN):
        raise InputError(f"{path}: archives end in {', '.join(ENDINGS)}; any other name is that of a directory.")
    return None


@contextmanager
def create(path: str, force: bool = False) -> Iterator[ContainerWriter]:
    """Yield a new container, which gets the name `path` when the block ends; after an exception nothing is left.

    Raises:
        InputError: `path` exists and `force` is not set, or is a directory that is no archive. OSError.
    """
    path = os.path.abspath(path)
    compression = compression_of(path)
    if compression == "zstd" and not _has_zstandard() and not shutil.which("zstd"):
        raise InputError("Neither the package zstandard nor the command zstd is installed.", hint=_NO_ZSTD)
    _refuse(path, force, compression is None)
    if compression is None:
        temporary = tempfile.mkdtemp(prefix=f"{os.path.basename(path)[:200]}.", suffix=".new", dir=os.path.dirname(path))
        try:
            os.chmod(temporary, 0o777 & ~_umask())
            yield _Directory(temporary)
            _refuse(path, force, True)
            _replace_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return
    with files.replacing(path, is_durable=True) as temporary:
        with ExitStack() as stack:
            stream: Any = stack.enter_context(open(temporary, "xb"))
            packs_later = compression == "zstd" and not _has_zstandard()
            if compression == "gzip":
                stream = stack.enter_context(gzip.GzipFile("", "wb", 4, stream, 0))
            elif compression == "zstd" and not packs_later:
                import zstandard

                stream = stack.enter_context(zstandard.ZstdCompressor(3).stream_writer(stream, closefd=False))
            yield _Tar(stack.enter_context(tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT)))
        if packs_later:
            _zstd("-q", "-f", "-3", temporary, "-o", f"{temporary}.zst")
            os.replace(f"{temporary}.zst", temporary)
        _refuse(path, force, False)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _refuse(path: str, force: bool, is_directory: bool) -> None:
    if not os.path.isdir(os.path.dirname(path)):
        raise InputError(f"There is no directory {os.path.dirname(path)} for the archive.")
    if not os.path.lexists(path):
        return
    if not force:
        raise InputError(f"{path} exists already.", hint="Give another name, or --force to replace it.")
    if is_directory and not (os.path.isfile(os.path.join(path, MARK)) or (os.path.isdir(path) and not os.listdir(path))):
        raise InputError(f"{path} exists and is no archive, so it is not replaced.", hint="Give another name.")
    if not is_directory and not os.path.isfile(path):
        raise InputError(f"{path} is no file, so it is not replaced.", hint="Give another name.")


def _replace_directory(temporary: str, path: str) -> None:
    if not os.path.lexists(path):
        os.rename(temporary, path)
        return
    aside = f"{temporary}.old"
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


class _Tar:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, file: IO[bytes], size: int, mode: int = 0o644, mtime: float = 0) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode, mtime
        self._tar.addfile(info, file)


class _Directory:
    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, name: str, file: IO[bytes], size: int, mode: int = 0o644, mtime: float = 0) -> None:
        path = os.path.join(self._path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as target:
            copied = _copy(file, target, size)
            os.fchmod(target.fileno(), mode & 0o777)
        if copied < size:
            raise OSError("unexpected end of data")
        os.utime(path, (mtime, mtime))


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> int:
    done = 0
    while done < size and (data := source.read(min(_COPY_BYTES, size - done))):
        target.write(data)
        done += len(data)
    return done


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def read(path: str) -> Iterator[Iterator[Member]]:
    """Yield the members of a container, in order: each file is to be read before the next one is asked for.

    Raises:
        InputError: there is no such container. ArchiveError: it is damaged, or has a member that is refused.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, MARK)):
            raise InputError(f"{path} is no archive: it has no {MARK}.")
        yield _members_of_directory(path)
        return
    try:
        with ExitStack() as stack:
            stream: Any = stack.enter_context(open(path, "rb"))
            magic = stream.read(4)
            stream.seek(0)
            if magic[:2] == b"\x1f\x8b":
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            elif magic == b"\x28\xb5\x2f\xfd":
                stream = stack.enter_context(_decompressed(path, stream))
            with _as_archive_error(path):
                tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedHeader))
            yield _members_of_tar(path, tar)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc


@contextmanager
def _as_archive_error(path: str) -> Iterator[None]:
    """Turn the errors of reading a damaged container into ArchiveError."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as exc:
        raise ArchiveError(f"{path} is damaged, or no archive: {exc or type(exc).__name__}") from exc
    except Exception as exc:
        if type(exc).__name__ != "ZstdError":  # of a package that may not be installed
            raise
        raise ArchiveError(f"{path} is damaged: {exc}") from exc


class _BoundedHeader(tarfile.TarInfo):
    """A header whose long name is short enough to be read into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if not self.isfile() and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def _members_of_tar(path: str, tar: tarfile.TarFile) -> Iterator[Member]:
    seen: set[str] = set()
    while True:
        with _as_archive_error(path):
            info = tar.next()
        if info is None:
            return
        tar.members = []  # type: ignore[attr-defined]  # else it keeps all headers
        name = _checked_name(path, info.name)
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            kind = "a link" if info.issym() or info.islnk() else "no regular file"
            raise ArchiveError(f"{path}: {info.name!r} is {kind}; such archives are refused.")
        if name in seen:
            raise ArchiveError(f"{path}: {name!r} is there twice.")
        if not name.startswith("files/"):  # of which there may be millions
            seen.add(name)
        file = tar.extractfile(info)
        assert file is not None
        yield Member(name, info.size, info.mode & 0o777, info.mtime, io.BufferedReader(_Translating(path, file)))


class _Translating(io.RawIOBase):
    """A member's content; the errors of a damaged container are ArchiveErrors."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_archive_error(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _checked_name(path: str, name: str) -> str:
    """Return a member's name as a relative path. Raises ArchiveError: it leads out of the container."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ArchiveError(f"{path}: {name!r} leads out of the archive's directory; such archives are refused.")
    return "/".join(parts)


def _members_of_directory(path: str) -> Iterator[Member]:
    """Yield the mark first, then the other files by name: no link is followed."""
    names = [MARK]
    for folder, folders, found in os.walk(path):
        for name in (*found, *folders):
            whole = os.path.join(folder, name)
            mode = os.lstat(whole).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
                raise ArchiveError(f"{path}: {os.path.relpath(whole, path)!r} is {kind}; such archives are refused.")
        names += [os.path.relpath(os.path.join(folder, name), path) for name in found]
    for name in sorted(dict.fromkeys(names), key=lambda name: (_ORDER.get(name.partition("/")[0], len(_ORDER)), name)):
        with open(os.open(os.path.join(path, name), os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            yield Member(name, status.st_size, status.st_mode & 0o777, status.st_mtime, file)


_TABLES = ("apps.jsonl", "jobs.jsonl", "events.jsonl", "runs.jsonl", "edits.jsonl")
#: The order in which the members of a directory are read: what others depend on comes first.
_ORDER = {
    name: place for place, name in enumerate((MARK, *_TABLES, "scripts", "files", "ro-crate-metadata.json", "files.jsonl"))
}


# --- zstd -------------------------------------------------------------------------------------------------------------


def _has_zstandard() -> bool:
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _decompressed(path: str, stream: IO[bytes]) -> Iterator[Any]:
    if _has_zstandard():
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True) as reader:
            yield reader
        return
    if not shutil.which("zstd"):
        raise InputError(f"{path} is compressed by zstd, of which neither package nor command is here.", hint=_NO_ZSTD)
    with tempfile.TemporaryDirectory(prefix="balsam-import-") as folder:
        plain = os.path.join(folder, "archive.tar")
        _zstd("-q", "-d", path, "-o", plain)
        with open(plain, "rb") as file:
            yield file


def _zstd(*words: str) -> None:
    done = run(["zstd", *words], timeout_s=_ZSTD_TIMEOUT_S)
    if not done.ok:
        raise ArchiveError(f"zstd failed: {done.stderr.strip() or done.returncode}")
