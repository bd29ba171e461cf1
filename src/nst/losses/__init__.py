"""Losses of knowledge distillation, each a target of the teacher and a value from it.

from nst.losses import NST

nst = NST()
target = nst.target(teacher_feature, student_feature.shape[1:])
loss = cross_entropy + 50 * nst(student_feature, target)
"""

from nst.losses.attention import AT
from nst.losses.base import Convention, Input, LossSpec, Shape, TransferLoss
from nst.losses.cc import CC
from nst.losses.crd import CRD
from nst.losses.cross_entropy import CrossEntropy
from nst.losses.dist import DIST
from nst.losses.dkd import DKD
from nst.losses.fitnet import FitNet
from nst.losses.kd import KD
from nst.losses.nst import NST
from nst.losses.pkt import PKT
from nst.losses.review import ReviewKD
from nst.losses.rkd import RKD
from nst.losses.sp import SP
from nst.losses.vid import VID

__all__ = [
    "AT",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "NST",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "Convention",
    "CrossEntropy",
    "FitNet",
    "Input",
    "LossSpec",
    "ReviewKD",
    "Shape",
    "TransferLoss",
]
