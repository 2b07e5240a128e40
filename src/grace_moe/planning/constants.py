"""Every number that planning does not derive, each beside the figure that chose it.

`Not tuned` marks a number that was set once and not compared with others. The pages named are in benchmarks/results;
docs/planner.md#constants has the same table, and a test compares the two.
"""

DEFAULT_REDUNDANCY = 1.25
"""Slots over experts for methods with equal slots, where the user sets none. What EPLB is commonly given."""

# Defaults of the options of `grace`

IMBALANCE_PRICE = 4.0
"""Option `price`. Chosen on quarters of the requests (planners_2cores_2026-11-25.md)."""
TOLERANCE = 1.015
"""Option `tolerance`. Chosen on quarters of the requests, for at most 3% over EPLB on others (planners_2cores_2026-11-25.md)."""
DECODE_COPIES = 0.05
"""Option `decode_copies`. 4% fewer active experts at 2x2 for it (decode_2026-11-25.md)."""
DECODE_LOAD = 0.1
"""Option `decode_load`. Row of `decode_copies` (decode_2026-11-25.md)."""
DECODE_BATCH = 64
"""Option `decode_batch`, tokens. The batch of decode_2026-11-25.md; not tuned."""
MAX_DECODE_BATCH = 65_536
"""Largest `decode_batch`. Not tuned: bounds memory."""

# Step 3: what is independent in a trace

MOST_STREAMS = 16
"""Most sequences recorded side by side. Not tuned."""
STREAM_AGREEMENT = 0.9
"""Share of the best agreement at which a shorter distance wins. Not tuned: multiples of the distance agree nearly as well."""
STREAM_TOKENS = 4096
"""Tokens that the distance is measured on. Not tuned."""
STREAM_LAYERS = 8
"""Layers that it is measured on. Not tuned."""
RUN_TOKENS = 32
"""Most tokens of a stream that count as one unit. Not tuned."""
FEWEST_RUNS = 32
"""Units that a short trace is cut into at least. Not tuned."""
CAUTION = 16
"""Multiple of the imbalance price where requests are unknown. Chosen on the measuring halves of two traces, no clean test
(planners_2cores_2026-11-25.md)."""

# Step 4: requests and nodes

COST_TOKENS = 12_000
"""Tokens that tell what a request costs from each node. Not tuned."""
COST_WINDOWS = 512
"""Windows of requests that costs are learnt from (step 13). Not tuned: bounds memory."""
COST_RIDGE = 3.0
"""Ridge of the costs that are learnt (step 13), over the mean square of a window. Chosen by cross-validation on the planning half
(requests_2026-11-27.md)."""
EVENING_ROUNDS = 400
"""Rounds in which learnt costs are made as low from one node as from another. Not tuned."""
SHARED_REQUESTS = 1024
"""Requests that are shared out at once. Not tuned: an assignment of more takes long."""
NAMING_STARTS = 8
"""Random starts of naming the nodes alike. Not tuned."""
NAMING_ROUNDS = 30
"""Most rounds of each. Not tuned: they end earlier, where one brings nothing."""

# Step 6: how far loads stray

SHRINKAGE = 0.2
"""Shrinkage of the covariance towards its diagonal. Not tuned: there are more covariances than requests."""

# Step 7: the search over nodes

SEARCH_TOKENS = 1500
"""Tokens of the long search. Within 1.2% of searches of all tokens and 20 times the moves (optimality_2cores_2026-11-25.md)."""
POLISH_TOKENS = 6000
"""Tokens of the short search and of the steps after it. As for `SEARCH_TOKENS`."""
LONG_PROPOSALS = 110_000
"""Moves of the long search. As for `SEARCH_TOKENS`."""
LONG_HEAT = (0.008, 1e-4)
"""First and last temperature of the long search, in copies per token. Not tuned, as all temperatures."""
SHORT_PROPOSALS = 15_000
"""Moves of the short search that follows. As for `SEARCH_TOKENS`."""
SHORT_HEAT = (3e-4, 3e-5)
"""Not tuned."""
AGAIN_PROPOSALS = 20_000
"""Moves at a higher price, from the copies of the last one. Not tuned."""
AGAIN_HEAT = (2e-3, 3e-5)
"""Not tuned."""
START_PROPOSALS = 40_000
"""Moves from copies that were planned without a front-end (step 4), judged by `POLISH_TOKENS`: a token that comes from one node tells less
than one from all. Chosen on the planning half (requests_2026-11-27.md)."""
START_HEAT = (8e-3, 3e-5)
"""As for `START_PROPOSALS`: a cold search stays with what suits requests that come in anywhere."""
REPLAN_PROPOSALS = 8_000
"""Moves from a placement that serves. 8 to 10 times faster, at most 4% more traffic (again_2cores_2026-11-25.md)."""
REPLAN_HEAT = (3e-4, 3e-5)
"""Figures of `REPLAN_PROPOSALS`: a cold search moves few experts."""
DESCENT_TOKENS = 8192
"""Tokens of a descent while a model serves, times nodes. Not tuned: bounds time."""
DESCENT_ROUNDS = 12
"""Most rounds of the descent: the moves that are guessed to be best, tried by the exact energy. Not tuned: 16 rounds find the same (OLMoE,
WikiText and ARC, 2x2, the half that is seen)."""
HASTY_ROUNDS = 3
"""The same where time is short. Not tuned: bounds time."""
VARIANCE_WEIGHT = 3.0
"""Weight of the variance beside the squared mean, on nodes and on devices. Not tuned; above 1 against the winner's curse: of many
candidates the search keeps one whose balance the sample flatters."""
COPY_CAP = 0.8
"""Load of one copy, over a device's mean load, from which it is priced. Not tuned."""
COPY_PRICE = 1.0
"""Copies per token that a unit of its square above the cap is worth, summed over copies. Not tuned."""
SWAP_SHARE = 0.3
"""Share of the moves that swap where both kinds are possible. Not tuned."""

# Steps 8 and 10: prices of nodes, and the split

PRICE_ROUNDS = 8
"""Rounds of the prices. Not tuned."""
PRICE_STEP = 8.0
"""Price for each unit of a node's load over the mean, in the first round. Not tuned."""
FEW_NODES = 4
"""Nodes up to which prices are found on all tokens of the sample. Not tuned."""
PRICE_TOKENS = 1500
"""Tokens that prices are found on beyond. Not tuned: many nodes make many (token, source) pairs of a token."""
REPLAN_THINNING = 3
"""From a placement that serves, prices are found on every third token. Figures of `REPLAN_PROPOSALS`."""
PRICE_ROUNDS_AGAIN = 2
"""Rounds of the prices while a model serves, from those that serve. Not tuned."""
SPLIT_ROUNDS = 200
"""Rounds of the split. Not tuned: they end earlier, where loads are even."""
EVEN_ENOUGH = 1.0005
"""Load of the busiest device over the mean at which the split ends. Not tuned."""
LEAST_LOAD = 0.05
"""Load, over the mean, that a device counts as carrying at least when weights are raised. Not tuned: bounds a round's change."""
LATE_POWER = 0.3
"""Power of the change of weights in the second half of the rounds; 1 in the first. Not tuned: smaller steps settle."""
LEAST_WEIGHT = 0.02
"""Smallest weight of a replica, over the largest of its expert. Not tuned: a replica without weight could not serve."""

# Step 9: devices of a node

PACKING_TOKENS = 4000
"""Tokens that packing looks at; half of them from a placement that serves. Not tuned."""
SWAPS_PER_SLOT = 150
"""Swaps over the node's slots. A quarter fewer than before, no loss (planners_2cores_2026-11-25.md)."""
PACKING_HEAT = (0.003, 5e-5)
"""Not tuned."""
DEVICE_IMBALANCE_PRICE = 100.0
"""Copies per token that a unit of squared imbalance is worth, summed over the node's devices. Not tuned."""
FLAT_DEVICE_PRICES = (100.0, 30.0, 10.0)
"""The same where a token is sent to each device: layers take the best of these within the tolerance. Not tuned."""
REPACK_SWAPS_PER_SLOT = 10
"""Swaps from a placement that serves. Figures of `REPLAN_PROPOSALS`."""
REPACK_HEAT = (1e-4, 5e-5)
"""Figures of `REPLAN_PROPOSALS`."""
STAY = 0.05
"""Copies per token that it is worth to leave a copy on its device. Figures of `REPLAN_PROPOSALS`: 198 of 1280 copies move for 848."""

# Step 11: balance that is expected

DAYS = 64
"""Bootstrap samples. Not tuned."""
FORECAST_CELLS = 1 << 25
"""Loads of (unit, source node, device) that the forecast holds. Not tuned: bounds memory."""

# Step 12: prices and candidates

PRICE_STEPS = (1, 4, 16)
"""Multiples of the imbalance price. Not tuned."""
DOUBT = 0.5
"""Standard deviations between bootstrap samples that the tolerance must cover. Chosen on quarters of the requests
(planners_2cores_2026-11-25.md)."""
DOUBT_UNKNOWN = 2.0
"""The same where requests are unknown. Chosen on the measuring halves of two traces, no clean test
(planners_2cores_2026-11-25.md)."""
LEAST_RATE = 0.02
"""Lowest rate above 0 of copies per token for load. Not tuned."""
RATE_STEP = 1.25
"""Ratio of a rate to the one before. Not tuned."""
RATES = 60
"""Number of rates. Not tuned: the highest lets balance decide."""
GATHERING_PROPOSALS = 12_000
"""Trades of whole devices between nodes. Not tuned."""
GATHERING_HEAT = (5e-3, 1e-5)
"""Not tuned."""

# Plans for time

CLOCK_TOKENS = 12_000
"""Tokens that a placement is timed on. Not tuned."""
CLOCK_PARTS = 32
"""Parts into which their requests are dealt, to draw days of. Not tuned."""
TIMED_DAYS = 16
"""Days that a placement is timed on. Not tuned."""
TIMED_PRICES = (0.25, 1.0, 4.0)
"""Prices of imbalance that are searched at, over the exchange rate of a unit of the busiest device's load. Not tuned."""
TIMED_DEVICE_PRICES = (100.0, 1000.0)
"""Prices of imbalance of a node's devices that are tried. Not tuned."""
CAPACITY_ROUNDS = 4
"""Times that the devices' shares of the load are set anew by what they carry. Not tuned."""
CAPACITY_POWER = 0.5
"""Power of a share's change in a round. Not tuned."""
DOUBT_IN_TIME = 1.0
"""Standard deviations between days that a placement must save over the one for copies. The least of 0, 0.5, 1, 1.5 and 2 with which none
was slower by 1% on other layers than those measured (plan_for_time_2026-11-27.md)."""
DEAREST_NODES = 4
"""Nodes, those of the slowest links, from each of which alone tokens are taken to come in some searches. Not tuned: bounds time."""
MOVE_LIMITS = (0.95, 0.98, 1.0)
"""Share of the busiest device's limit that moves keep to, on the fastest placement of a layer and the next ones. Not tuned: what is at the
limit on a sample is beyond it on some days."""
MOVES = 400
"""Placements that moves of single experts try from each, timed on `MOVE_TOKENS`. Not tuned."""
MOVE_TOKENS = 3000
"""Tokens that a move is timed on. Not tuned."""
DRAWS_A_TRY = 10
"""Most moves that are drawn for each that is tried: others are known already, or can't be made. Not tuned: bounds time."""
MOVE_PATIENCE = 4
"""Moves in vain, over experts times devices, after which the search leaves a placement that no move makes faster. Not tuned."""
MOVES_ASTRAY = 3
"""Moves with which it leaves it, whatever they cost. Not tuned."""
OVER_LIMIT = 10.0
"""Seconds of a layer that a second of the busiest device beyond its limit costs in these moves. Not tuned."""
CHOICE_MOVES = 0.1
"""Share of the moves that change how replicas are chosen: by policy, or by a node's price. Not tuned."""

# Step 15: replicas of decode

BATCH_TOKENS = 4096
"""Tokens of the sampled batches, at least. Not tuned."""
LEAST_BATCHES = 16
"""Batches, at least. Not tuned."""
SHARPNESS = 1.0
"""Of the soft maximum that ranks replicas. Not tuned: the maximum itself is blind to what only the second busiest device loses."""
LEAST_RETURN = 0.25
"""Share of active experts less for each share of copies more. At 4x4 no replica pays by it (decode_2026-11-25.md)."""
LEAST_COST = 0.1
"""Share of the bounds that a loss costs at least. Not tuned: what is free but helps little must not come first."""
