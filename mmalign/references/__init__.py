"""Where reference scores come from: nothing, a module, a frozen copy, or the policy with its LoRA adapters off."""

from mmalign.references.base import Reference, ReferenceModule, as_reference, policy_and_reference
from mmalign.references.fingerprint import fingerprint_of
from mmalign.references.frozen import FrozenReference
from mmalign.references.lora_off import LoRAOffReference

__all__ = [
    "FrozenReference",
    "LoRAOffReference",
    "Reference",
    "ReferenceModule",
    "as_reference",
    "fingerprint_of",
    "policy_and_reference",
]
