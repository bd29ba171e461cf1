"""A finished run → files to deploy: the student in several formats, each verified, with its cost and a model card.

`model.json` + `student.safetensors` need the network's own code; `student.pt2` needs torch, `student.onnx` an ONNX
runtime. None needs hooks, projections, the teacher or the training code.
"""

from nst.export.student import export
from nst.finished import FinishedRun, finished_run, load_student

__all__ = ["FinishedRun", "export", "finished_run", "load_student"]
