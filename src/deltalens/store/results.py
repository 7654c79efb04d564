"""The columns of an experiment's tables, once (schema 1): what every arm did on every item, and what follows."""

import pyarrow as pa

RESULTS = pa.schema(
    [
        ("arm", pa.string()),
        ("role", pa.string()),
        ("mode", pa.string()),
        ("edit_hash", pa.string()),
        ("strength", pa.float64()),
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("item", pa.string()),
        ("group", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("opened", pa.bool_()),
        ("closed", pa.bool_()),
        ("thought", pa.bool_()),
        ("think_tokens", pa.int32()),
        ("correct", pa.bool_()),
        ("format_ok", pa.bool_()),
        ("loop", pa.bool_()),
        ("p_think", pa.float64()),
        ("p_skip", pa.float64()),
        ("kl", pa.float64()),
    ]
)
"""One row per arm, mode, item and sample. `group` is the item's stratum. An arm on which nothing was generated has no
text and no outcome; its probabilities stand all the same."""

ARMS = pa.schema(
    [
        ("arm", pa.string()),
        ("edit_hash", pa.string()),
        ("edit", pa.string()),
        ("role", pa.string()),
        ("control_of", pa.string()),
        ("norm_delta", pa.float64()),
        ("functional_norm", pa.float64()),
    ]
)
"""One row per arm: what it is (the edit as JSON), and whose control."""

SUMMARY = pa.schema(
    [
        ("arm", pa.string()),
        ("task", pa.string()),
        ("group", pa.string()),
        ("metric", pa.string()),
        ("reference", pa.string()),
        ("n", pa.int64()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("method", pa.string()),
        ("p", pa.float64()),
        ("p_holm", pa.float64()),
    ]
)
"""One row per number. With a `reference` the value is the paired difference from that arm, `p` its test and `p_holm`
the same corrected for every test of the table. `group` is empty where all items are pooled."""

TOKENS = pa.schema(
    [
        ("item", pa.string()),
        ("group", pa.string()),
        ("phase", pa.string()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("layer", pa.int32()),
        ("raw", pa.float64()),
        ("normalised", pa.float64()),
        ("z", pa.float64()),
    ]
)
"""One row per token of an example and layer: its activation along a direction, over ‖h‖, and in standard deviations."""

SELECT = " (select)"
"""Behind the name of the task on whose select split layers, signs, strengths and ranks are chosen."""
