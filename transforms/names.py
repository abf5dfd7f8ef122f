"""Names that are needed before anything heavy is imported."""

__all__ = ["FEATURES"]

FEATURES = ("embedding", "label", "score", "scores", "input_ids")
"""What can be asked for; ``token_count`` and ``truncated`` always come along."""
