"""Two ranks, joined over the network as two machines are, do what one process does on the same global batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import ROOT
from tests.distributed import scenarios
from tests.distributed.conftest import output, torchrun

from nst.dist import Dist

SCENARIOS = str(ROOT / "tests/distributed/scenarios.py")
ONE = Dist(0, 1, torch.device("cpu"))
Found = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two nodes with one process finds; they meet at a port of the first, as on a cluster."""
    folder = tmp_path_factory.mktemp("ranks")
    for node in torchrun(SCENARIOS, str(folder), "cpu", nodes=2):
        output(node)
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(2)]


@pytest.fixture(scope="module")
def one() -> Found:
    return scenarios.results(ONE)


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_losses_gradients_and_weights_are_those_of_one_process(name: str, ranks: list[Found], one: Found) -> None:
    """Loss terms, gradient norm and accuracy of every step; then weights, what losses learn and BN statistics, the same on both."""
    for two_ranks, single in zip(ranks[0][name]["logged"], one[name]["logged"], strict=True):
        torch.testing.assert_close(flat(two_ranks), flat(single), rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0][name]["state"], one[name]["state"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ranks[0][name]["state"], ranks[1][name]["state"], rtol=0, atol=0)
    assert ranks[0][name]["logged"] == ranks[1][name]["logged"]


def flat(logged: dict[str, Any]) -> dict[str, float]:
    terms = logged["terms"]
    return {key: float(value) for key, value in {**logged, **terms}.items() if not isinstance(value, dict)}


def test_images_are_seen_once_in_an_epoch_and_in_an_evaluation(ranks: list[Found], one: Found) -> None:
    steps = -(-scenarios.IMAGES // scenarios.BATCH)
    epoch = torch.cat([part for rank in ranks for part in rank["plain"]["seen"][:steps]])
    assert epoch.sort().values.tolist() == list(range(scenarios.IMAGES))
    assert [len(rank["plain"]["seen"][steps - 1]) for rank in ranks] == [1, 2]  # 3 images left for two ranks
    assert one["evaluation"]["images"] == scenarios.IMAGES
    for rank in ranks:
        torch.testing.assert_close(rank["evaluation"], one["evaluation"], rtol=1e-6, atol=0)
        assert rank["features"] == one["features"]  # each batch is one rank's, so to the last bit


@pytest.mark.parametrize(("parts", "whole"), [("parts", "plain"), ("next_parts", "next")])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(parts: str, whole: str, one: Found) -> None:
    """Without BN, which sees each part alone."""
    torch.testing.assert_close(one[parts]["state"], one[whole]["state"], rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_give_what_one_process_gives(one: Found, tmp_path: Path) -> None:
    """With NCCL, in the arithmetic of the GPU."""
    [job] = torchrun(SCENARIOS, str(tmp_path), "cuda", ranks=2)
    output(job)
    found = torch.load(tmp_path / "rank0.pt", weights_only=False, map_location="cpu")
    for name in scenarios.SCENARIOS:
        torch.testing.assert_close(found[name]["state"], one[name]["state"], rtol=1e-2, atol=1e-3)
