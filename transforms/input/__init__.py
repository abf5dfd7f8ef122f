"""Files to record batches: the plan, its splits, the formats, and the process that decodes what is not trusted."""
