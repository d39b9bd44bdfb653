"""Attentions of feature maps, a file each: linen modules [B, H, W, C] -> [B, H, W, C], usable alone."""
