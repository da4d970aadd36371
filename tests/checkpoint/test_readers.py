"""Hostile and damaged files: refused in words, without running anything, in bounded memory."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_model

from mask2former.checkpoint import Mask2FormerCheckpointer
from mask2former.checkpoint.readers import read_file, read_folder

GIANT = 10**9


class Attack:
    """Unpickled, it runs a command that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def refused(path: Path, expected: str) -> str:
    """The message a user sees, one line, when loading into a model; the model is unchanged."""
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=expected) as error:
        Mask2FormerCheckpointer(model).load(str(path))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ending", [".pkl", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("place", ["alone", "beside weights", "as a key"])
def test_a_command_is_refused_and_not_run(tmp_path, ending, place):
    trace = tmp_path / "trace"
    attack = Attack(trace)
    content = {
        "alone": attack,
        "beside weights": {"model": {"a": torch.zeros(1)}, "x": [{"y": (attack,)}]},
        "as a key": {"model": {attack: torch.zeros(1)}},
    }[place]
    path = tmp_path / f"weights{ending}"
    if ending == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    message = refused(path, "was refused: it asks for posix.system")
    assert "could run code" in message and not trace.exists()


@pytest.mark.parametrize(
    "words",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n(cos\n__dict__\nS'x'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14abc.sys.modules.copy\x93.",  # a dotted name reaches into modules
        b"cnumpy\nload\n(S'x'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"cmask2former.checkpoint.readers\n_encode\n.",
        b"ccopyreg\n_reconstructor\n.",
    ],
)
def test_every_other_name_is_refused(tmp_path, words):
    path = tmp_path / "weights.pkl"
    path.write_bytes(words)
    refused(path, "was refused: it asks for")


def test_the_state_of_a_function_cannot_be_set(tmp_path):
    # BUILD on an allowed function would change it for the whole process.
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"c_codecs\nencode\n(N}S'__defaults__'\n)stb.")
    refused(path, "the state of a function")


def test_a_hostile_name_of_a_weight_is_a_name_only(tmp_path, caplog):
    names = ["__class__", "backbone.__class__", "../../etc/passwd", "x\n\x1b[31mCRITICAL: all is well", "%s{0}" * 5000]
    model = small_model()
    path = tmp_path / "weights.pth"
    torch.save({"model": {**dict(model.state_dict()), **{name: torch.zeros(1) for name in names}}}, path)
    other = small_model(seed=1)
    Mask2FormerCheckpointer(other).load(str(path))
    assert type(other).__name__ == "MaskFormer"
    text = next(r.getMessage() for r in caplog.records if r.name.startswith("mask2former.checkpoint"))
    assert "\x1b" not in text and "CRITICAL" not in text.split("unused:")[0] and len(text) < 2000
    assert len(text.split("\n")) == 2 and "unused 5 of the file" in text


@pytest.mark.parametrize("name", [3, None, ("a", "b"), b"a"])
def test_a_name_that_is_no_string(tmp_path, name):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {name: np.zeros(1)}}))
    refused(path, "the name of a weight is .*, expected a string")


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
def test_an_empty_file(tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    path.touch()
    refused(path, r"it is empty. The file \(0 bytes\) is damaged")


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file(tmp_path, ending, share):
    path = tmp_path / f"weights{ending}"
    weights = small_model().state_dict()
    if ending == ".pth":
        torch.save({"model": weights}, path)
    elif ending == ".pkl":
        path.write_bytes(pickle.dumps({"model": {name: value.numpy() for name, value in weights.items()}}))
    else:
        from safetensors.torch import save_file

        save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = refused(path, "Cannot read the checkpoint .* download or copy it again")
    assert "\n" not in message and (ending != ".pth" or share < 0.1 or "it is cut off" in message)


def test_other_things_that_arrive_as_weights(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("<!DOCTYPE html><html>Not Found</html>")
    refused(path, "it is a web page")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(path, "Git LFS pointer")
    path.write_bytes(os.urandom(500))
    refused(path, "damaged, incomplete or not a checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    refused(path, "torch.save did not write it")
    torch.save([torch.zeros(2)], path)
    refused(path, "holds a list, expected weights by name")
    torch.save({"model": {"a": "b"}}, path)
    refused(path, "holds no weights")


def giant_storage(path: Path) -> None:
    """A torch file whose storage of eight bytes claims a billion elements."""
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in entries if name.endswith("data.pkl")]
    # The two elements of the storage (K\x02 before tQ), and of the shape.
    words = entries[name].replace(b"K\x02tq", b"J" + struct.pack("<i", GIANT) + b"tq")
    assert words != entries[name]
    entries[name] = words.replace(b"K\x02\x85", b"J" + struct.pack("<i", GIANT) + b"\x85")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def giant_storage_behind_a_decoy(path: Path) -> None:
    """The same, with an entry of the right size that only differs in upper case."""
    giant_storage(path)
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
        archive.writestr(name.upper(), bytes(64))


def giant_legacy_storage(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    changed = content.replace(b"K\x02Nt", b"J" + struct.pack("<i", GIANT) + b"Nt")
    assert changed != content
    path.write_bytes(changed)


def giant_view(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1).expand(GIANT)}}, path)


def compressed_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(GIANT // 4))


def giant_array(path: Path) -> None:
    # _reconstruct with a billion elements, then a state with a billion elements and four bytes.
    path.write_bytes(
        b"\x80\x02}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\x00\xca\x9a;\x85U\x01ftR"
        b"(K\x01J\x00\xca\x9a;\x85cnumpy\ndtype\n(U\x02f4I00\nI01\ntR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tbI00\nU\x04abcdtbs."
    )


def giant_string(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 50 * GIANT) + b"abc.")


def giant_memo(path: Path) -> None:
    # One opcode that makes the C unpickler's table of objects 64 GB large.
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")


def giant_bytearray(path: Path) -> None:
    path.write_bytes(b"cbuiltins\nbytearray\n(J\x00\xca\x9a;tR.")


def giant_safetensors(path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [GIANT], "data_offsets": [0, 4 * GIANT]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


def giant_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 50 * GIANT) + b"{}")


GIANTS = {
    giant_storage: (".pth", "storage 0 claims 1000000000 elements, but has 8 bytes"),
    giant_storage_behind_a_decoy: (".pth", "two entries of one name"),
    giant_legacy_storage: (".pth", "claims 1000000000 elements"),
    giant_view: (".pth", r"claims the shape \(1000000000,\), but the file has only 4 bytes"),
    compressed_archive: (".pth", "its archive would grow when unpacked"),
    giant_array: (".pkl", "Cannot read the checkpoint"),
    giant_string: (".pkl", "it ends .* bytes too early"),
    giant_memo: (".pkl", "holds a NoneType"),
    giant_bytearray: (".pkl", "it asks for builtins.bytearray"),
    giant_safetensors: (".safetensors", "Cannot read the checkpoint"),
    giant_header: (".safetensors", "Cannot read the checkpoint"),
}


@pytest.mark.parametrize("write", GIANTS, ids=lambda write: write.__name__)
def test_what_a_file_claims_is_not_allocated(tmp_path, write):
    ending, expected = GIANTS[write]
    path = tmp_path / f"weights{ending}"
    write(path)
    refused(path, expected)


def test_memory_stays_bounded_whatever_is_claimed(tmp_path):
    paths = []
    for write, (ending, _) in GIANTS.items():
        paths.append(str(tmp_path / f"{write.__name__}{ending}"))
        write(Path(paths[-1]))
    script = (
        "import resource, sys\n"
        "from mask2former.checkpoint.readers import read_file\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_file(path)\n"
        "    except ValueError: continue\n"
        "    raise SystemExit(path)\n"
        "grown = (peak() - before) / 1024\n"
        "raise SystemExit(0 if grown < 100 else f'{grown} MB')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_shape_that_does_not_fit_is_reported_not_made(tmp_path):
    model = small_model()
    weights = dict(model.state_dict())
    weights["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(9, 2)
    path = tmp_path / "weights.pth"
    torch.save({"model": weights}, path)
    before = model.state_dict()["sem_seg_head.predictor.query_feat.weight"].clone()
    Mask2FormerCheckpointer(model).load(str(path))
    assert torch.equal(model.state_dict()["sem_seg_head.predictor.query_feat.weight"], before)


def test_arrays_of_every_kind_survive(tmp_path):
    arrays = {
        "float16": np.arange(3, dtype=np.float16),
        "int64": np.arange(6).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bool": np.array([True, False]),
        "scalar": np.float32(2.5),
        "none": np.zeros((0, 3), np.float32),
    }
    for protocol in (2, 4, 5):
        path = tmp_path / "weights.pkl"
        path.write_bytes(pickle.dumps({"model": arrays, "iteration": 3, "__author__": "a"}, protocol=protocol))
        content = read_file(path)
        assert content["iteration"] == 3
        for name, array in arrays.items():
            assert np.array_equal(content["model"][name].numpy(), array), (protocol, name)


def test_tensors_in_a_plain_pickle_and_metadata_survive(tmp_path):
    weights = OrderedDict(a=torch.arange(4.0), b=torch.nn.Parameter(torch.ones(2)))
    weights._metadata = {"": {"version": 2}}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": weights}))
    found = read_file(path)["model"]
    assert torch.equal(found["a"], weights["a"]) and found._metadata == {"": {"version": 2}}


def test_a_python_2_pickle_is_read(tmp_path):
    # Strings of Python 2 are bytes; this is how it wrote {"a": array([1.0], "f4")}.
    path = tmp_path / "weights.pkl"
    path.write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x01\x85cnumpy\ndtype\n(U\x02f4I00\nI01\ntR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"I00\nU\x04\x00\x00\x80?tbs."
    )
    assert read_file(path)["model"]["a"].tolist() == [1.0]


def test_arrays_in_a_torch_file_are_read(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": np.arange(3.0)}, "loss": np.float64(2)}, path)
    assert read_file(path)["model"]["a"].tolist() == [0.0, 1.0, 2.0]


def test_an_array_of_objects_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([{}, []], dtype=object)}))
    refused(path, "it asks for an array of O")


def test_a_folder_in_several_parts(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert sorted(read_folder(tmp_path)) == ["a", "b"]
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ValueError, match="a file outside of its folder"):
        read_folder(tmp_path)


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"without weights: expected model.safetensors .* found notes.txt"):
        read_folder(tmp_path)


def test_reading_does_not_change_numpy(tmp_path):
    # A dtype's state, set on the shared float32, would change it for everybody.
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"cnumpy\ndtype\n(U\x02f4I00\nI00\ntR(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.")
    refused(path, "another byte order")
    path = tmp_path / "weights.pth"
    torch.save({"a": np.ones(1, ">f4")}, path)
    assert read_file(path)["model"]["a"].tolist() == [1.0]
    assert np.dtype("f4").byteorder == "=" and np.float32(1).tobytes() == struct.pack("<f", 1)
