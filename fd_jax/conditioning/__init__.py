"""Everything that turns prompts and subjects into the cross-attention context."""
