"""The layers of a model and what they remember: configuration, attention, experts, caches.

`config` checks the header's keys, `weights` maps its tensors, and the pages of
`engine.architectures` join layers to a `decoder`. A weight multiplies through `engine.kernels`;
nothing here depends on the device.
"""
