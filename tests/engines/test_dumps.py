"""NumPy's files from outside: whole numbers, as many as are there, in memory that their size warrants."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from grace_moe.engines.recordings.dumps import npy_array, read_npy, read_npz
from grace_moe.errors import TraceError


def header(shape, descr="<i4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def refused(path, says):
    with pytest.raises(TraceError, match=says) as error:
        read_npz(path) if path.suffix == ".npz" else read_npy(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_wrote_is_read(tmp_path, order):
    ids = np.arange(24, dtype=np.int16).reshape(2, 3, 4, order=order)
    np.save(tmp_path / "a.npy", ids)
    np.savez(tmp_path / "b.npz", ids=ids, none=np.zeros((0, 5), np.uint8))
    np.savez_compressed(tmp_path / "c.npz", ids=ids)
    assert (read_npy(tmp_path / "a.npy") == ids).all()
    assert (read_npz(tmp_path / "b.npz")["ids"] == ids).all()
    assert read_npz(tmp_path / "b.npz")["none"].shape == (0, 5)
    assert (read_npz(tmp_path / "c.npz")["ids"] == ids).all()


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1,) * 70, "is not a shape of up to 8 dimensions"),
        ((0, 10**30, 2), "is not a shape of up to 8 dimensions"),
        ((-1, 2), "is not a shape of up to 8 dimensions"),
        ((10**30, 2), "is not 4 bytes"),
        ((2,), "is not 4 bytes"),
    ],
)
def test_shapes_that_no_array_has(tmp_path, shape, says):
    (tmp_path / "a.npy").write_bytes(header(shape) + (b"" if 0 in shape else b"1234"))
    refused(tmp_path / "a.npy", says)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("topk_ids.npy", (tmp_path / "a.npy").read_bytes())
    refused(tmp_path / "a.npz", says)


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("topk_ids.npy", "w", force_zip64=True) as member:
        member.write(header((2**24,)))
        for _ in range(2**6):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    try:
        refused(path, "size unpacked: asks for 64 MiB of memory")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_archive_is_in_memory_once(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, topk_ids=np.arange(2**21, dtype=np.int64))
    tracemalloc.start()
    try:
        assert read_npz(path)["topk_ids"][-1] == 2**21 - 1
        assert tracemalloc.get_traced_memory()[1] < 2**24 + 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression_is_refused_whole_or_damaged(tmp_path, method):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("topk_ids.npy", header((100,)) + bytes(400))
    refused(path, "compressed in a way that neither NumPy nor torch writes")
    data = bytearray(path.read_bytes())
    data[60:80] = b"\xff" * 20
    path.write_bytes(bytes(data))
    refused(path, "compressed in a way|not a whole .npz")


def test_damage_anywhere_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, topk_ids=np.arange(500))
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 0x55
        path.write_bytes(bytes(data))
        try:
            arrays = read_npz(path)
        except TraceError:
            continue
        assert all((array == np.arange(500)).all() for array in arrays.values()), at


def test_a_view_of_the_bytes_is_not_a_copy():
    data = bytearray(header((3,)) + np.array([1, 2, 3], "<i4").tobytes())
    array = npy_array(data, "here")
    data[-4] = 9
    assert array.tolist() == [1, 2, 9]
