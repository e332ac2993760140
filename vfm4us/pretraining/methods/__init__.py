"""The methods an encoder can be pretrained by: one file and one line here each."""

from vfm4us.pretraining.method import Method
from vfm4us.pretraining.methods.dinov2 import DINOv2
from vfm4us.pretraining.methods.emp_ssl import EmpSSL
from vfm4us.pretraining.methods.mae import MAE
from vfm4us.pretraining.methods.simclr import SimCLR
from vfm4us.pretraining.methods.spatial_frequency import SpatialFrequency

METHODS: dict[str, type[Method]] = {
    "emp_ssl": EmpSSL,
    "mae": MAE,
    "dinov2": DINOv2,
    "simclr": SimCLR,
    "spatial_frequency": SpatialFrequency,
}
