"""Wrong input and wrong places: one readable message, nothing harmed. Bad images and labels: tests/data."""

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from tests.faults.conftest import Place, Server


def refused(place: Place, *args: str, fault: tuple[str, ...] = ()) -> str:
    """The error of the command with these arguments."""
    assert place.run(*fault, args=list(args)) == 1, place.text()
    assert "Traceback" not in place.text()
    return place.text()[place.text().rindex("error: ") :]


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle(place: Place, tmp_path: Path, zipped: bool) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"fc.weight": Malicious(proof)}, path, _use_new_zipfile_serialization=zipped)
    text = refused(place, f"teacher.weights={path}")
    assert f"weights file {path} holds more than tensors and plain values" in text
    assert not proof.exists()


def test_malicious_checkpoint(place: Place, tmp_path: Path) -> None:
    """Even one with a right checksum."""
    import hashlib
    import io

    from nst.runs.checkpoint import MAGIC

    assert place.run("die_after_step", 3) == -9
    buffer = io.BytesIO()
    torch.save({"about": Malicious(tmp_path / "ran")}, buffer)
    (path,) = (place.path / "checkpoints").glob("*.ckpt")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path.write_bytes(MAGIC + digest.encode() + b"\n" + buffer.getvalue())
    assert place.run() == 1
    assert "holds more than tensors and plain values" in place.text()
    assert not (tmp_path / "ran").exists()


def test_teacher_of_another_architecture(place: Place, teacher: Path) -> None:
    text = refused(place, "teacher=resnet20")
    assert f"weights file {teacher} is of another architecture; missing: layer1.2." in text
    text = refused(place, "teacher=wrn16_2")
    assert "not in the model: " in text
    assert "missing: " in text


def test_teacher_damaged(place: Place, teacher: Path, tmp_path: Path) -> None:
    content = bytearray(teacher.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "t.safetensors").write_bytes(content)
    text = refused(place, f"teacher.weights={tmp_path}/t.safetensors")
    assert "t.safetensors is damaged: its tensors have SHA-256 " in text
    assert "does not exist" in refused(place, "teacher.weights=/nowhere/t.pt") or "no such file" in place.text()


def test_teacher_at_chance(place: Place, teacher: Path) -> None:
    text = refused(place, "teacher.min_accuracy=null", "teacher.mean=[30]", "teacher.std=[0.01]")
    assert f"the teacher ({teacher}) scores " in text
    assert "it may be at chance" in text


def test_two_processes_in_one_folder(place: Place) -> None:
    first = place.start("wait_in_step", 2, 30.0)
    while not list(place.folder.glob("outputs/digits/*/*/*/config.json")):
        time.sleep(0.01)
    text = refused(place, fault=("impatient",))
    assert "is being written by another process (pid " in text
    assert str(first.pid) in text
    os.kill(first.pid, 9)
    assert first.wait() == -9
    assert place.run() == 0, place.text()


def test_messages_name_the_disk_error(server: Server, tiny: list[str], tmp_path: Path) -> None:
    place = Place(server, tmp_path / "here", [*tiny, f"outputs={tmp_path}/file/outputs"])
    (tmp_path / "file").write_text("")
    assert os.strerror(errno.ENOTDIR) in refused(place)
    text = refused(place, "cache.views=16", f"cache.path={tmp_path}/file/cache", "outputs=outputs")
    assert f"cache.path={tmp_path}/file/cache: no such folder can be made" in text
