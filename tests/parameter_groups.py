"""Prints the optimizer groups of a model as each kind of parallel training wraps it, from two CPU processes."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mvd_hf import MVDConfig, MVDForVideoClassification
from mvd_hf.training.optimization import parameter_groups, parameter_rules
from tiny_models import TINY


def ddp(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def fsdp1(model):
    policy = ModuleWrapPolicy({type(model.mvd.layers[0])})
    return FullyShardedDataParallel(
        model, use_orig_params=True, device_id=torch.device("cpu"), auto_wrap_policy=policy
    )


def fsdp2(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.mvd.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main():
    dist.init_process_group("gloo")
    for wrap in (lambda model: model, ddp, fsdp1, fsdp2):
        for is_compiled in (False, True):
            model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **TINY, num_frames=4, num_labels=3))
            rules = parameter_rules(model)
            wrapped = wrap(model)
            wrapped = torch.compile(wrapped, backend="eager") if is_compiled else wrapped
            groups = parameter_groups(wrapped, 0.05, 0.75, rules)
            found = [(round(group["lr_scale"], 4), group["weight_decay"], len(group["params"])) for group in groups]
            if dist.get_rank() == 0:
                print(found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
