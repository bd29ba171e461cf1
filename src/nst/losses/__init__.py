"""Losses of knowledge distillation, each a target of the teacher and a value from it.

from nst.losses import NST

nst = NST()
target = nst.target(teacher_feature, student_feature.shape[1:])
loss = cross_entropy + 50 * nst(student_feature, target)

docs/conventions.md has the settings of each loss's authors, and where papers and published codes differ.
"""

from nst.losses.abkd import ABKD
from nst.losses.attention import AT
from nst.losses.base import Convention, CrossEntropy, Input, Shape, TransferLoss
from nst.losses.class_maps import CATKD, SDD
from nst.losses.crd import CRD
from nst.losses.dist import DIST
from nst.losses.dkd import DKD, RLD
from nst.losses.fitnet import FitNet
from nst.losses.kd import KD, NKD, TTM
from nst.losses.mgd import MGD
from nst.losses.nst import NST
from nst.losses.ofa import OFA
from nst.losses.relational import CC, PKT, SP
from nst.losses.review import ReviewKD
from nst.losses.rkd import RKD
from nst.losses.vid import VID
from nst.losses.wkd import WKDF, WKDL

__all__ = [
    "ABKD",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "MGD",
    "NKD",
    "NST",
    "OFA",
    "PKT",
    "RKD",
    "RLD",
    "SDD",
    "SP",
    "TTM",
    "VID",
    "WKDF",
    "WKDL",
    "Convention",
    "CrossEntropy",
    "FitNet",
    "Input",
    "ReviewKD",
    "Shape",
    "TransferLoss",
]
