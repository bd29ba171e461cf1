"""A live teacher's targets are the same eager or compiled; in other precisions, by the statistics of the batch."""

import copy

import pytest
import torch

from nst.data.batch import Batch
from nst.distiller import TargetSpec
from nst.layers import LOGITS
from nst.losses import AT, KD, NST
from nst.models import resnet8
from nst.teacher import LiveTeacher, Normalization
from nst.teacher.network import load_teacher


def batch(n: int = 4) -> Batch:
    torch.manual_seed(1)
    zeros = torch.zeros(n, dtype=torch.long)
    return Batch(torch.randn(n, 3, 8, 8), zeros, torch.arange(n), zeros)


AT_STAGE1 = TargetSpec("at:0", "stage1", AT(), (16, 8, 8))
POLY = TargetSpec("nst:0", "last", NST(), (64, 2, 2))
SOFT = TargetSpec("kd:0", LOGITS, KD(), (10,))


@pytest.mark.compiles
def test_compiled_targets_equal_eager_ones() -> None:
    model = resnet8()
    load_teacher(model, Normalization((0.1,) * 3, (0.2,) * 3), mean=[0.3] * 3, std=[0.4] * 3)
    live = LiveTeacher(model, [AT_STAGE1, POLY])
    eager, tail = live(batch()), live(batch(3))
    live.compile(4)
    torch.testing.assert_close(live(batch()), eager, rtol=1e-4, atol=1e-5)
    assert torch.equal(live(batch(3))["nst:0"]["gram"], tail["nst:0"]["gram"])


def test_in_bf16_the_network_computes_coarsely_and_the_summary_in_float32() -> None:
    model, seen = resnet8(), []
    model.layer3.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    exact, coarse = LiveTeacher(model, [POLY, SOFT]), LiveTeacher(model, [POLY, SOFT], precision="bf16")
    right, found = exact(batch()), coarse(batch())
    assert seen == [torch.float32, torch.bfloat16]
    for key, name in (("nst:0", "gram"), ("kd:0", "logits")):
        assert found[key][name].dtype == torch.float32
        assert not torch.equal(found[key][name], right[key][name])
        torch.testing.assert_close(found[key][name], right[key][name], rtol=0.1, atol=0.05)
    assert found["nst:0"]["gram"].bfloat16().float().ne(found["nst:0"]["gram"]).any()  # finer than bf16


def test_batch_statistics_are_those_of_the_batch_and_change_nothing() -> None:
    """Also after other code has set the network to `eval()`."""
    model, images = resnet8(), batch(6)
    state = {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}
    expected = copy.deepcopy(model).train()(images.images)
    by_running = LiveTeacher(model, [SOFT])(images)["kd:0"]["logits"]
    live = LiveTeacher(model, [SOFT], batch_statistics=True)
    torch.testing.assert_close(live(images)["kd:0"]["logits"], expected)
    assert not torch.allclose(by_running, expected, atol=1e-3)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
