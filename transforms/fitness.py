"""Features that are asked of a checkpoint, held against what it can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import SettingsError

if TYPE_CHECKING:
    from .distilbert.checkpoint import Checkpoint
    from .featurization import FeatureSpec

__all__ = ["check_spec"]


def check_spec(checkpoint: Checkpoint, spec: FeatureSpec) -> None:
    """Hold a spec against a checkpoint, without weights.

    Raises:
        SettingsError: the checkpoint cannot give what the spec asks for.
    """
    limit = checkpoint.config.max_position_embeddings
    if spec.needs_encoder and spec.max_length is not None and spec.max_length > limit:
        raise SettingsError(f"`max_length` is {spec.max_length}; {checkpoint.id} reads at most {limit} tokens")
    if spec.needs_classes and not checkpoint.labels:
        raise SettingsError(
            f"{checkpoint.id} has no classification head, so it gives no label; take a fine-tuned checkpoint"
        )
    values = checkpoint.regression and len(checkpoint.labels) > 1
    if values and any(name in spec.features for name in ("label", "score")):
        raise SettingsError(
            f"{checkpoint.id} has {len(checkpoint.labels)} outputs that are values and no classes (problem_type "
            "regression), so none of them is the label; ask for the feature 'scores' alone"
        )
    if "embedding" in spec.features:
        if spec.pooling is None and checkpoint.sentence.unsupported:
            raise SettingsError(
                f"{checkpoint.id} cannot be embedded as published: {checkpoint.sentence.unsupported}: "
                f"{checkpoint.sentence.cure}"
            )
        poolings = 1 if spec.pooling else len(checkpoint.sentence.pooling.split("+"))
        if spec.dimensions is not None and spec.dimensions > poolings * checkpoint.config.dim:
            raise SettingsError(
                f"`dimensions` is {spec.dimensions}; {checkpoint.id} has {poolings * checkpoint.config.dim}"
            )
