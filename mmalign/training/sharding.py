"""Fully sharded data parallelism (FSDP2): weights, gradients and optimizer state spread over the processes.

The trainer shards with :func:`shard`, on GPUs and on CPUs alike, and never through accelerate, which ignores FSDP on a
CPU without a word. Between two steps every parameter is a ``DTensor`` of which a process holds its share of the first
dimension; a forward or backward gathers one block at a time. The other functions here lead from shares to whole
tensors and back, so that a checkpoint does not depend on how many processes wrote it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def mesh_of(device: torch.device, processes: int) -> DeviceMesh:
    """All processes in one row; collective."""
    return init_device_mesh(device.type, (processes,))


def shard(
    module: nn.Module, mesh: DeviceMesh, *, mixed_precision: str = "no", blocks: Collection[str] = ()
) -> nn.Module:
    """Shard ``module`` in place over ``mesh`` and give it back; its parameters move to the mesh's device.

    ``blocks``: class names of the layers that are gathered as one, each; default: ``sharded_blocks`` of the module, or
    what the model itself says must not be split (``_no_split_modules`` of diffusers and transformers). What no block
    holds is gathered with the root.

    ``mixed_precision="bf16"`` is autocast as without sharding, with weights sent as bf16 (half the traffic) and
    gradients added up in fp32. Inputs are left alone: sizes and timesteps would not survive a cast. Policy and
    reference have to be sharded alike, or their scores differ by the rounding.

    Everything is resharded after every forward, the root too: otherwise a changed weight (the moving average swapped
    in, a loaded checkpoint) would not reach the next forward, and gradients switched off with the adapters would be
    switched off on the wrong tensors. Errors: ``ValueError`` where no layer is called like a block.
    """
    names = set(blocks) or own_blocks(module)
    units = blocks_in(module, names)
    if not units:
        raise ValueError(_no_blocks(module, names))
    half = torch.bfloat16 if mixed_precision == "bf16" else None
    full = torch.float32 if half else None
    inner = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=full, cast_forward_inputs=False)
    outer = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=full, output_dtype=full, cast_forward_inputs=False)
    for unit in reversed(units):  # children before the parents that hold them
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=inner)
    fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=outer)
    if half:
        module.forward = torch.autocast(mesh.device_type, dtype=half)(module.forward)
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether :func:`shard` was here."""
    return isinstance(module, FSDPModule)


def spread(module: nn.Module) -> int:
    """Over how many processes every parameter is spread; 0 where one of them is not."""
    return min((p.device_mesh.size() if isinstance(p, DTensor) else 0 for p in module.parameters()), default=0)


def local(value: Tensor) -> Tensor:
    """This process's share, in the same memory; a tensor that is not sharded as it is."""
    with torch.no_grad():
        value = value.detach()
        return value.to_local() if isinstance(value, DTensor) else value


def with_local(value: Tensor, like: Tensor) -> Tensor:
    """A sharded tensor whose share is ``value``, laid out as ``like``; ``value`` where ``like`` is not sharded."""
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(
        value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """Of the whole ``value`` what this process holds of ``like``; ``value`` where ``like`` is not sharded.

    Every process has to have the same ``value``; nothing is sent.
    """
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_on_device(value: Tensor) -> Tensor:
    """The whole of a sharded or partial tensor on every process; collective. For scalars such as a norm."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole(value: Any, *, keep: bool) -> Any:
    """``value``, a tensor or nested dicts and lists, with every sharded tensor gathered on the CPU; collective.

    One tensor is gathered at a time, and only processes that ``keep`` hold on to it; the others get None for it.
    """
    if isinstance(value, DTensor):
        with torch.no_grad():
            gathered = value.full_tensor()
        return gathered.detach().cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: whole(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item, keep=keep) for item in value)
    return value


def shares_of_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer as ``optimizer.load_state_dict`` wants it where its parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def share(index: int, value: Any) -> Any:
        of_parameter = isinstance(value, Tensor) and value.ndim > 0 and value.shape == parameters[index].shape
        return share_of(value, parameters[index]) if of_parameter else value

    shares = {index: {key: share(index, value) for key, value in of.items()} for index, of in state["state"].items()}
    return {**state, "state": shares}


def make_whole(module: nn.Module, *, keep: bool) -> nn.Module:
    """Undo :func:`shard` for good, on the processes that ``keep``: a plain module on the CPU, to be exported.

    Collective. Elsewhere the module stays sharded and must not be run any more, for the others are gone.
    """
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            gathered = whole(parameter, keep=keep)
            if keep and isinstance(parameter, DTensor):
                owner._parameters[name] = nn.Parameter(gathered, requires_grad=parameter.requires_grad)
    if keep:
        for unit in module.modules():
            if isinstance(unit, FSDPModule):
                _unhook(unit)
        module.__dict__.pop("forward", None)  # autocast
        module.to("cpu")  # buffers
    return module


def _unhook(unit: FSDPModule) -> None:
    """torch has no way back, so this takes off what ``fully_shard`` put on: two hooks and a class of its own.

    The class matters most: exported configurations name it.
    """
    state: Any = unit._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    unit.__class__ = type(unit).__mro__[2]  # [FSDPUNet, FSDPModule, UNet, ...]


def blocks_in(module: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """The modules below ``module`` whose class is one of ``names``, parents before what they hold."""
    return [child for child in module.modules() if child is not module and type(child).__name__ in names]


def own_blocks(module: nn.Module) -> set[str]:
    """Class names of the layers that ``module`` says belong together."""
    own = getattr(module, "sharded_blocks", None)
    if own is not None:
        return set(own)
    return {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}


def _no_blocks(module: nn.Module, names: Collection[str]) -> str:
    classes = [type(child).__name__ for child in module.modules()]
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    what = f"none is a {' or '.join(sorted(names))}" if names else "the model does not tell (_no_split_modules)"
    return (
        f"training.strategy: fsdp gathers one block of layers at a time, but of the layers of {type(module).__name__} "
        f"{what}; name their classes in fsdp_config.fsdp_transformer_layer_cls_to_wrap of the launcher's file. Classes "
        f"that occur more than once: {', '.join(repeated)}"
    )
