"""The baselines: each one is the training rule for another method. To add one: a stanza here, a file in baselines/, a
line in the config.

Those that need no teacher are trained beside it, and after whatever the teacher waits for; the longest first, so that
none is left over at the end.
"""


use rule train as train_bge with:
    wildcard_constraints:
        method="bge",
    priority: 15


use rule train as train_retromae with:
    wildcard_constraints:
        method="retromae",
    priority: 15


use rule train as train_llara with:
    wildcard_constraints:
        method="llara",
    priority: 20


use rule train as train_sgpt with:
    wildcard_constraints:
        method="sgpt",
    priority: 10


use rule train as train_udever with:
    wildcard_constraints:
        method="udever",
    priority: 10


# An example of a further one, in no tier unless config/simcse.yaml is laid over it.
use rule train as train_simcse with:
    wildcard_constraints:
        method="simcse",
    priority: 10


# Another: late interaction, by config/colbert.yaml.
use rule train as train_colbert with:
    wildcard_constraints:
        method="colbert",
    priority: 10


# The rivals of config/rivals.yaml. Two read the teacher's scores and wait for them, as D2LLM does.
use rule train as train_pma with:
    wildcard_constraints:
        method="pma",
    priority: 10


use rule train as train_multi with:
    wildcard_constraints:
        method="multi",
    priority: 10


use rule train as train_kd with:
    wildcard_constraints:
        method="kd",
    priority: 70


use rule train as train_hypencoder with:
    wildcard_constraints:
        method="hypencoder",
    priority: 70
