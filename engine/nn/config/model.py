"""A model's hyperparameters, as the layers, the caches and the memory estimate use them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.architectures.registry import SOFTMAX
from engine.nn.cache.spec import CacheSpec

OVERLAPPING = 4  # the ratio whose blocks overlap and have an indexer, in DeepSeek V4


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding for the first `dims` values of each head.

    attention_factor: multiplies cos and sin, in addition to YaRN's own factor. yarn_factor: YaRN's
    own factor, or 0 if it follows from `factor`.
    log_multiplier: `mscale_all_dim`, or 0 if the file does not set it.
    """

    dims: int
    base: float
    scaling: str = "none"  # none | linear | yarn | longrope
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    yarn_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    rounded: bool = True  # round the ends of YaRN's ramp to whole pairs
    log_multiplier: float = 0.0


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Routed experts in MoE layers: each token uses `used` of the `count` experts.

    Starting at layer `first`, every `step`th layer is an MoE layer, except the `dense` ones, which
    the file's tensors show. Experts are chosen from the best `groups_used` of `groups` groups.
    width: hidden width of each routed expert. shared_width: hidden width of the shared expert,
    which always runs; 0 if there is none. latent_width: width of the vector that routed experts
    read and write; 0: the model's. hashed_layers: in so many of the first layers, a token's id
    determines its experts. used_by_layer, width_by_layer: one number per layer if layers differ
    (Nemotron 3 Puzzle), 0 where there are no experts; `used` and `width` are then the largest.
    """

    count: int
    used: int
    width: int
    gating: int = SOFTMAX
    renormalize: bool = True  # scale the chosen experts' weights to sum to 1
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    weight_on_input: bool = False
    shared_width: int = 0
    averaged: bool = False  # the output is the mean of the routed and the shared experts' outputs
    first: int = 0
    step: int = 1
    dense: tuple[int, ...] = ()
    latent_width: int = 0
    hashed_layers: int = 0
    used_by_layer: tuple[int, ...] = ()
    width_by_layer: tuple[int, ...] = ()

    def of_layer(self, layer: int) -> ExpertConfig:
        """Return a layer's own configuration."""
        if not self.used_by_layer:
            return self
        used, width = self.used_by_layer[layer], self.width_by_layer[layer]
        return replace(self, used=used, width=width, used_by_layer=(), width_by_layer=())


@dataclass(frozen=True, slots=True)
class IndexerConfig:
    """The lightning indexer, which chooses the `top` tokens that each token attends to.

    own: one flag per layer. True if the layer has its own indexer, False if it reuses the
    previous layer's choice.
    """

    heads: int
    dims: int
    top: int
    own: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class BlocksConfig:
    """Attention to blocks of tokens, which an indexer chooses.

    ratios: one per layer: the tokens in a block; 0: the layer has no blocks. The indexer's `top`
    counts entries (DeepSeek V4) or tokens (Qwen4).
    """

    ratios: tuple[int, ...]
    indexer: IndexerConfig


@dataclass(frozen=True, slots=True)
class EntriesConfig:
    """DeepSeek V4's attention, in which an entry replaces the keys of a block.

    rope_base: of layers with blocks. output_rank: for each of `output_groups` groups of heads.
    """

    query_rank: int
    output_groups: int
    output_rank: int
    rope_base: float


@dataclass(frozen=True, slots=True)
class StreamsConfig:
    """Hyper-connections: `count` residual streams. rank: of the projection that mixes them.

    iterations: how often the sums of the mixing matrix are made 1. eps: added to its entries.
    """

    count: int
    rank: int = 0
    iterations: int = 1
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class NgramConfig:
    """Hashed embeddings of n-grams of 2 to `longest` tokens, in one layer.

    heads: embeddings of each n-gram, `width` values each. kernel: taps of the convolution. end: the
    token that ends a text. multipliers: of each token in the hash. sizes, offsets: of each head's
    part of the table, in rows.
    """

    layer: int
    longest: int
    heads: int
    width: int
    kernel: int
    end: int
    multipliers: tuple[int, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Multi-head latent attention: keys and values are cached as one `rank`-wide latent per token.

    key_dim, value_dim: width per head; the last `rope.dims` values of each key are rotated.
    query_rank: 0 if queries are projected in one step.
    """

    rank: int
    query_rank: int
    key_dim: int
    value_dim: int
    indexer: IndexerConfig | None = None


@dataclass(frozen=True, slots=True)
class RecurrentConfig:
    """A causal convolution over `kernel` tokens and, except in conv layers, a recurrent state.

    groups: number of key heads (delta, kda), or of groups that share B and C (mamba2). heads:
    number of value heads. state: key width per head. inner: value width summed over all heads.
    state_values: number of float32 values that each layer caches. decay_bound: the least log decay;
    0: none.
    """

    kind: str  # delta | kda | mamba2 | conv
    kernel: int
    state_values: int
    state: int = 0
    groups: int = 0
    heads: int = 0
    inner: int = 0
    decay_bound: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's hyperparameters. Widths are in values, context lengths in tokens.

    Layers with a window may have heads of other widths, and have their own rotary embedding.
    """

    architecture: str
    name: str
    layers: int  # excludes draft-only layers
    width: int
    vocab: int
    context: int
    heads: tuple[int, ...]  # one per layer
    kv_heads: tuple[int, ...]  # one per layer; 0 where the layer is recurrent
    key_dim: int
    value_dim: int
    window_key_dim: int
    window_value_dim: int
    feed_forward: tuple[int, ...]  # one per layer; see `single_blocks`
    norm_eps: float
    attention_scale: float
    rope: RopeConfig
    window_rope: RopeConfig
    experts: ExpertConfig | None = None
    windows: tuple[int, ...] = ()  # one per layer, in tokens; 0: no window
    chunked: bool = False  # windows do not slide: each token attends only within its chunk
    rope_enabled: bool = True
    borrowed_layers: int = 0  # how many of the last layers use the keys of an earlier one
    per_layer_width: int = 0  # of the embedding that each layer has for each token; 0: none
    expert_clamps: tuple[float, ...] = ()  # one per layer: see `clamped_silu`; 0: none
    dense_clamps: tuple[float, ...] = ()  # the same for shared experts and dense layers
    centred_norms: bool = False  # norms without a bias subtract the mean
    score_cap: float = 0.0
    logit_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0  # multiplies the logits
    value_scale: float = 1.0  # multiplies attention's values
    temperature_scale: float = 0.0  # `scale` in `engine.nn.rope.Temperature`; 0: disabled
    temperature_length: int = 0  # `length` in `engine.nn.rope.Temperature`, in tokens
    latent: LatentConfig | None = None
    recurrent: RecurrentConfig | None = None
    blocks: BlocksConfig | None = None
    entries: EntriesConfig | None = None
    streams: StreamsConfig | None = None
    ngrams: NgramConfig | None = None
    single_blocks: bool = False  # a layer with feed_forward 0 has only a mixer; others have none

    def mixes(self, layer: int) -> bool:
        """Return True if a layer has a mixer."""
        return not (self.single_blocks and self.feed_forward[layer])

    def cache_spec(self, layer: int) -> CacheSpec:
        """Return the cache spec for a layer."""
        if not self.mixes(layer):
            return CacheSpec()
        if self.recurrent and not self.kv_heads[layer]:
            return self._recurrent_spec(layer, self.recurrent)
        if self.entries:
            return self._entries_spec(layer)
        if self.latent:
            indexer = self.latent.indexer
            latents = (1, self.latent.rank + self.rope.dims)
            if indexer is None:
                return CacheSpec((latents,))
            keys = ((1, indexer.dims),) if indexer.own[layer] else ()
            return CacheSpec((latents, *keys), chosen=indexer.top)
        source = self.kv_source(layer)
        heads, (key_dim, value_dim) = self.kv_heads[source], self.head_dims(layer)
        rows = ((heads, key_dim), (heads, value_dim))
        if self.blocks and (ratio := self.blocks.ratios[layer]):
            keys = ((1, self.blocks.indexer.dims),)
            read = self.blocks.indexer.top + ratio
            kept = CacheSpec(rows, chosen=read, choosy=len(rows))
            return CacheSpec(
                parts=(kept, CacheSpec(keys, window=ratio), CacheSpec(keys, stride=ratio))
            )
        return CacheSpec(rows, window=self.window(layer), borrowed=source != layer)

    def _recurrent_spec(self, layer: int, recurrent: RecurrentConfig) -> CacheSpec:
        state = CacheSpec(state_values=recurrent.state_values)
        ngrams, streams = self.ngrams, self.streams
        if ngrams is None or streams is None or ngrams.layer != layer:
            return state
        reach = (ngrams.kernel - 1) * ngrams.longest
        values = reach * streams.count * self.width + ngrams.longest - 1
        return CacheSpec(parts=(state, CacheSpec(state_values=values)))

    def _entries_spec(self, layer: int) -> CacheSpec:
        """Return the cache spec of a layer with the last tokens' rows, and entries if it has some.

        Its parts: these rows, what the tokens of a block that is not complete gave, and entries.
        """
        assert self.blocks is not None
        last = CacheSpec(((1, self.key_dim),), window=self.window(layer))
        ratio, indexer = self.blocks.ratios[layer], self.blocks.indexer
        if not ratio:
            return CacheSpec(parts=(last,))
        overlaps = ratio == OVERLAPPING
        widths = (self.key_dim, indexer.dims) if overlaps else (self.key_dim,)
        times = 2 if overlaps else 1
        given = tuple((1, times * width) for width in widths for _ in range(2))
        entries = CacheSpec(
            tuple((1, width) for width in widths),
            stride=ratio,
            chosen=indexer.top if overlaps else 0,
        )
        return CacheSpec(parts=(last, CacheSpec(given, window=times * ratio), entries))

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        return tuple(self.cache_spec(layer) for layer in range(self.layers))

    def window(self, layer: int) -> int:
        """Return how many tokens a layer attends to, or 0 for all."""
        return self.windows[layer] if self.windows else 0

    def head_dims(self, layer: int) -> tuple[int, int]:
        """Return the widths of a layer's keys and values, per head."""
        if self.window(layer):
            return self.window_key_dim, self.window_value_dim
        return self.key_dim, self.value_dim

    def kv_source(self, layer: int) -> int:
        """Return the layer whose keys and values a layer attends to.

        The last `borrowed_layers` layers use those of the last layer before them that, like them,
        has a window or has none.
        """
        own = self.layers - self.borrowed_layers
        if layer < own:
            return layer
        alike = (at for at in range(own) if bool(self.window(at)) == bool(self.window(layer)))
        return max(alike)

    def routed(self, layer: int) -> bool:
        """Return True if a layer is an MoE layer."""
        experts = self.experts
        if experts is None or layer in experts.dense or layer < experts.first:
            return False
        if self.single_blocks and self.mixes(layer):
            return False
        return (layer + 1) % experts.step == 0
