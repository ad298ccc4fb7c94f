"""RetroMAE's one-layer decoder: every position rebuilds its token from the sentence vector and a few visible tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class EnhancedDecoder(nn.Module):
    """One BERT layer whose queries differ from its keys and values (Xiao et al. 2022, eq. 4–7; release:
    BertLayerForDecoder).

    A = LayerNorm(q + W_o·softmax(Q Kᵀ/√d_h + M) V),  out = LayerNorm(A + FFN(A))
    """

    def __init__(self, config) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        size, epsilon = config.hidden_size, getattr(config, "layer_norm_eps", 1e-12)
        self.heads = config.num_attention_heads
        self.query, self.key, self.value, self.output = (nn.Linear(size, size) for _ in range(4))
        self.norm0 = nn.LayerNorm(size, eps=epsilon)
        self.widen = nn.Linear(size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.narrow = nn.Linear(config.intermediate_size, size)
        self.norm1 = nn.LayerNorm(size, eps=epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=config.initializer_range)
                nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, states: Tensor, visible: Tensor) -> Tensor:
        """query (n, t, d), states (n, t, d) as keys and values, visible (n, t, t) bool: row sees column ->
        (n, t, d).
        """

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(query)), split(self.key(states)), split(self.value(states)), visible[:, None]
        )
        mixed = self.output(mixed.transpose(1, 2).flatten(2))
        attended = self.norm0(query + self.dropout(mixed))
        return self.norm1(attended + self.dropout(self.narrow(self.activation(self.widen(attended)))))
