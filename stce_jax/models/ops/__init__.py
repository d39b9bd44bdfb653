"""Operations: arrays in, arrays out, no parameters and no modules.

Hand-written gradients and choices by backend live here and nowhere else. Each stands beside its plain form
(`layer_norm` and `layer_norm_plain`, ...), which it must equal, and says which backend it is for and what it saves.
`gradients.own_gradient` makes a gradient of a forward and a backward pass.
"""
