"""What torch.save wrote: nothing but plain data, in memory that the file's size warrants."""

import io
import pickle
import resource
import zipfile

import pytest
import torch

from grace_moe.engines.recordings.torch_dumps import read_torch, torch_integers
from grace_moe.errors import TraceError


def refused(path, says):
    with pytest.raises(TraceError, match=says) as error:
        read_torch(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1


def with_pickle(path, data):
    """An archive of torch's whose pickle is this one."""
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, data if name.endswith("data.pkl") else whole.read(name))
    return path


def test_plain_data_is_read(tmp_path):
    value = {
        "records": [{"ids": torch.arange(6).reshape(2, 3), "mode": 1, "text": "a", "none": None, "half": 0.5}],
        "t": (1, 2),
        "dtype": torch.int16,
    }
    torch.save(value, tmp_path / "a.pt")
    found = read_torch(tmp_path / "a.pt")
    assert found["records"][0].pop("ids").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found == {"records": [{"mode": 1, "text": "a", "none": None, "half": 0.5}], "t": (1, 2), "dtype": torch.int16}


def test_a_bytearray_of_gigabytes_is_refused_by_name(tmp_path):
    """883 bytes took 3.4 GB: torch's unpickler calls bytearray(n)."""
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.")
    refused(path, r"names __builtin__\.bytearray")


def test_members_that_another_reader_could_take_for_others_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": 1}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("A/DATA.PKL", b"")
    refused(path, "a name is there twice")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + bytes(1000))
    refused(path, "compressed, or a name is there twice")


def test_a_view_of_one_number_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"logical_count": torch.zeros(1, dtype=torch.int32).expand(1000, 1000, 1000)}, path)
    refused(path, r"\[1000, 1000, 1000\] shows more numbers than it has")
    torch.save([torch.zeros(2**21, dtype=torch.int32)] * 60, path)
    refused(path, "what it holds: asks for")
    torch.save({"part": torch.arange(10)[2:8:2]}, path)
    assert torch_integers(read_torch(path)["part"], "a", "b", 1).tolist() == [2, 4, 6]


@pytest.mark.parametrize("tensor", [torch.empty(3, device="meta"), torch.eye(3).to_sparse()])
def test_tensors_that_hold_no_numbers(tmp_path, tensor):
    torch.save({"logical_count": tensor}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds no plain numbers|names torch")


def test_lists_that_hold_one_another_are_refused(tmp_path):
    value = [0] * 100
    for _ in range(12):
        value = [value] * 10
    torch.save(value, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "what it holds: asks for")
    endless = []
    endless.append(endless)
    torch.save(endless, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "what it holds: asks for")


def test_a_pickle_of_many_containers_is_refused_before_it_is_loaded(tmp_path):
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02(" + b"]" * 2**18 + b"t.")
    refused(path, "data.pkl: asks for 30 MiB of memory")


@pytest.mark.parametrize("protocol", [0, 4])
def test_other_pickles(tmp_path, protocol):
    refused(with_pickle(tmp_path / "a.pt", pickle.dumps(resource.getrusage, protocol)), "names|of another pickle protocol")
    refused(with_pickle(tmp_path / "a.pt", b""), "can't load it as plain data")
    torch.save({"a": 1}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "b.pt", "can't load it as plain data")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_are_signed(dtype):
    array = torch_integers(torch.tensor([[1, 0]], dtype=dtype), "a", "b", 2)
    assert array.dtype.kind == "i"
    assert array.tolist() == [[1, 0]]
    with pytest.raises(TraceError, match="is not a tensor of whole numbers with 1 dimensions"):
        torch_integers(torch.tensor([[1, 0]], dtype=dtype), "a", "b", 1)
