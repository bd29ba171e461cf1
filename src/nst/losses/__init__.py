"""Losses of knowledge distillation, each a target of the teacher and a value from it.

from nst.losses import NST

nst = NST()
target = nst.target(teacher_feature, student_feature.shape[1:])
loss = cross_entropy + 50 * nst(student_feature, target)

docs/conventions.md has the settings of each loss's authors, and where papers and published codes differ.
"""

from nst.losses.attention import AT
from nst.losses.base import Convention, CrossEntropy, Input, Shape, TransferLoss
from nst.losses.class_maps import CATKD, SDD
from nst.losses.crd import CRD
from nst.losses.dkd import DKD, RLD
from nst.losses.kd import ABKD, DIST, KD, NKD, TTM
from nst.losses.maps import MGD, SP, VID, FitNet
from nst.losses.nst import NST
from nst.losses.ofa import OFA
from nst.losses.relational import CC, PKT, RKD
from nst.losses.review import ReviewKD
from nst.losses.wkd import WKDF, WKDL

__all__ = ["ABKD", "AT", "CATKD", "CC", "CRD", "DIST", "DKD", "KD", "MGD", "NKD", "NST", "OFA", "PKT", "RKD", "RLD"]
__all__ += ["SDD", "SP", "TTM", "VID", "WKDF", "WKDL", "Convention", "CrossEntropy", "FitNet", "Input", "ReviewKD"]
__all__ += ["Shape", "TransferLoss"]
