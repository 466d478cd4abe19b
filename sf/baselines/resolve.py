"""Model + method + value -> the attention that a checkpoint runs under.

All code that runs a checkpoint uses this resolver. The default method, `trained`, is the method in
the checkpoint's record (`sf.attention.trained`); a base model, which has no record, runs under
ZipVL.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.baselines.method import Method
from sf.baselines.registry import TRAINED, build, misfit, without_retention_p
from sf.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

    from sf.attention import Trace
    from sf.attention.trained import TrainedAttention
    from sf.selection import Policy

__all__ = [
    *("apply_method", "apply_policy", "check_policy", "resolve", "resolve_point"),
    "resolve_record",
]

BASE_METHOD = "zipvl"


def resolve(
    source: Any,
    method: str = TRAINED,
    value: float | None = None,
    retention_p: float | None = None,
) -> Method:
    """The attention of a checkpoint.

    Args:
        source: a model, perhaps PEFT-wrapped, its configuration, or a checkpoint's folder.
        method: a key of `METHODS`, or `trained`.
        value: of the method's hyperparameter; None uses the recorded value if the checkpoint was
            trained with the method, else the method's default.
        retention_p: in place of ZipVL's recorded or default one.

    Raises:
        ConfigError: an unknown method, or a value out of range.
        UnsupportedModelError: the method contradicts what the checkpoint was trained with, or does
            not run on this architecture.
        DataError: the checkpoint's record is malformed or contradicts itself.
    """
    from sf.attention.trained import record_of

    record = record_of(source)
    resolved = resolve_record(record, method, value, retention_p)
    recorded = None if record is None else record.method
    rule = misfit(resolved.name, _family(source), recorded)
    if rule is not None:
        raise UnsupportedModelError("method", method, rule)
    return resolved


def resolve_record(
    record: TrainedAttention | None,
    method: str = TRAINED,
    value: float | None = None,
    retention_p: float | None = None,
) -> Method:
    """The attention by a checkpoint's record, without a check that it runs there.

    Args:
        record: None for a base model.
        method, value, retention_p: as in `resolve`.

    Raises:
        ConfigError: see `resolve`.
    """
    recorded = None if record is None else record.method
    name = (recorded or BASE_METHOD) if method == TRAINED else method
    if value is None and name == BASE_METHOD:
        value = retention_p
    if value is None and record is not None and name == recorded:
        value = record.value
    return build(name, value)


def resolve_point(source: Any, retention_p: float, method: str = TRAINED) -> Method:
    """The attention of a checkpoint at one point of its curve.

    Args:
        source: as in `resolve`.
        retention_p: in (0, 1]: top-p's threshold, top-k's share of the tokens, 1 - the threshold of
            `threshold`, the token ratio of MoBA, NSA and VideoNSA.
        method: `trained`, or a method with a `retention_p`.

    Raises:
        ConfigError: the method has no `retention_p`.
        UnsupportedModelError, DataError: see `resolve`.
    """
    rule = without_retention_p(method)
    if rule is not None:
        raise ConfigError("method", method, rule)
    return resolve(source, method).at_point(retention_p)


def apply_policy(model: Any, policy: Policy | None) -> AbstractContextManager[Trace]:
    """Run a checkpoint under a policy, or (None) under the attention it was trained with.

    Raises:
        UnsupportedModelError, DataError: see `check_policy`.
    """
    from sf.attention import sparsify

    if policy is None:
        return resolve(model).apply(model)
    check_policy(model, policy)
    return sparsify(model, policy)


def check_policy(source: Any, policy: Policy | None) -> None:
    """Refuse a policy that contradicts a checkpoint's record; full attention is always allowed.

    Args:
        source: as in `resolve`.
        policy: None for the attention that the checkpoint was trained with.

    Raises:
        UnsupportedModelError: the checkpoint was trained with another attention or selector.
        DataError: see `resolve`.
    """
    from sf.attention.trained import record_of
    from sf.baselines.selectors import Selection

    trained = resolve(source)
    if policy is None or policy.dense or record_of(source) is None:
        return
    own = type(trained.policy()) if isinstance(trained, Selection) else None
    if own is not type(policy):
        rule = f"the checkpoint was trained with {trained.name}, which is another attention"
        remedy = "leave the policy out (sf ask: --p) to run it as trained"
        raise UnsupportedModelError("policy", type(policy).__name__, rule, remedy)


def apply_method(
    model: nn.Module, name: str = TRAINED, value: float | None = None
) -> AbstractContextManager[Trace]:
    """Run `model` under a method.

    ```python
    with apply_method(model, "zipvl", 0.975) as trace:
        output = model.generate(**inputs)
    trace.token_ratio  # (batch,), 1 for dense attention
    trace.layer_ratios  # (layers, batch)
    trace.kv_lengths  # (layers, batch)
    ```

    Args:
        model: a transformers model, in evaluation mode.
        name: a key of `METHODS`, or `trained`: the method that the checkpoint was trained with.
        value: of the method's hyperparameter; None uses the recorded value or the default.

    Raises:
        ConfigError, UnsupportedModelError, DataError: see `resolve`.
    """
    return resolve(model, name, value).apply(model)


def _family(source: Any) -> str:
    if isinstance(source, Path):
        from sf.models.load import load_config

        source = load_config(source)
    config = getattr(source, "config", source)
    return str(getattr(config, "model_type", ""))
