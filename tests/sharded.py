"""Runs a script of several CPU processes with FSDP2, which Accelerate offers on accelerators only.

python tests/sharded.py recipes/distill.py ...
"""

import runpy
import sys

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

begin = AcceleratorState.__init__


def begin_with_shards(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type is DistributedType.MULTI_CPU and fsdp_plugin is not None:
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


AcceleratorState.__init__ = begin_with_shards
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
