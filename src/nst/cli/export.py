"""Write a finished run's student as files to deploy, verified, with a model card.

nst export run=outputs/digits/resnet20-resnet8/nst_poly/seed0-1a2b3c4d

run=FOLDER       of a finished run (required)
weights=last     or best: of the last epoch, or of the best one
to=FOLDER        of the files; default: export/ in the run's folder
formats=[…]      of safetensors, torch, onnx, onnx_int8; default: all but the last, onnx where it is installed
normalize=true   the torch and onnx files take pixels in 0…1 and normalise them themselves
images=1000      test images to verify on, evenly spaced over the split
repeats=50       timed calls a batch size; fewer where they take more than 10 s
device=cpu       or cuda: where teacher and student are timed; the files are verified on the CPU
root=FOLDER      of the data, if it has moved
licence=MIT      of the weights, for the model card
calibration=512  training images that onnx_int8 takes the ranges of its activations from
int8_exclude=[…] layers that onnx_int8 keeps in 32 bits, by their names in the network
"""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

import nst.config
from nst.cli.compose import hydra_main
from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    hydra_main(task, "export", arguments)


def task(cfg: DictConfig) -> None:
    """Write the files and print how they compare with the network in memory."""
    with readable_errors("export"):
        from nst.export import export

        settings = OmegaConf.to_object(cfg)
        assert isinstance(settings, nst.config.ExportConfig)
        export(settings)
