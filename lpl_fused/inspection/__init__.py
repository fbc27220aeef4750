"""What a loss does to each class of saved logits, or did in a recorded training.

The command line's `lpl-fused inspect` is made of these parts; they need the `inspect` extra.
"""
