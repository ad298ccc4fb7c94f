"""D2LLM's losses, a file each: the equation as a pure function, and `term`, which feeds it a batch's scores
(`objective.Scores`).

Tensors in, a scalar out; no I/O, no randomness, no state, no weights. Symbols, config keys, the release's flags and
every divergence from it are tabled in docs/method.md. The plain contrast is the baselines' too
(`d2llm.methods.losses`).

Common to all functions
- B queries, K hard negatives, E easy negatives, N = 1 + K candidates (positive first). `z` is a student logit, `p̂` a
  teacher probability of yes.
- Masks are boolean and True where an entry counts. What a mask hides contributes nothing, to the value or to a
  gradient, even if it is not finite.
- The result is the mean over *valid* queries, those for which the loss is defined (each function says when). Without
  any, it is a zero that can still be differentiated, so that an unlucky batch never breaks a training.
- float16 and bfloat16 are computed in float32; float32 and float64 stay.
"""
