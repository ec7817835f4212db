"""Every metric there is: name, unit, meaning and, where it helps, what to do. docs/metrics.md is this file for people.

Names follow Prometheus: `thrones_`, the part, the thing, the base unit; `_total` for counters. No label names a user or an
order. Targets carry `role` and `member`, so no metric repeats them. `python -m infra.metrics.page` writes the page.
"""

from infra.metrics.kinds import CounterOf, Definition, DelaysOf, GaugeOf, HistogramOf

FAST_S = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
LOOP_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
STEP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ANSWER_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
BATCH_RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)

# Gateway and sse: counted by each worker, summed over all of them by whichever answers.
GATEWAY_ACCEPTED = CounterOf(name="thrones_gateway_accepted_total", unit="answers", meaning="202s to buy-flash.")
GATEWAY_ACKNOWLEDGED = HistogramOf(
    name="thrones_gateway_acknowledged_seconds",
    unit="seconds",
    meaning="Request read to 202, the wait for Kafka (at most 0.25 s) included.",
    to_do="Slow: look at Redis' fsync, then at Kafka.",
    bounds=FAST_S,
)
GATEWAY_REFUSED = CounterOf(
    name="thrones_gateway_refused_total",
    unit="answers",
    meaning="Problem answers by code.",
    to_do="sold_out is a success of the sale; busy, unavailable and stock_not_verified are not.",
    labels=("code",),
)
GATEWAY_OUTCOME_UNKNOWN = CounterOf(
    name="thrones_gateway_outcome_unknown_total",
    unit="answers",
    meaning="504s: the replies to a reservation were lost twice.",
    to_do="More than a few: look at Redis' latency and network.",
)
GATEWAY_PUBLISH_TIMEOUTS = CounterOf(
    name="thrones_gateway_publish_timeouts_total",
    unit="records",
    meaning="Publishes not acknowledged within 250 ms; the buyer has a 202 all the same.",
    to_do="Look at Kafka.",
)
GATEWAY_STREAMS = GaugeOf(name="thrones_gateway_streams", unit="streams", meaning="Open event streams.")
GATEWAY_STREAMS_CUT = CounterOf(
    name="thrones_gateway_streams_cut_total",
    unit="streams",
    meaning="Streams cut because their reader had stopped or vanished.",
)
GATEWAY_FAILED_LOGINS = CounterOf(
    name="thrones_gateway_failed_logins_total",
    unit="logins",
    meaning="Wrong email or password.",
    to_do="A flood is guessing; the limits an account and an address hold it back.",
)

# Every process that publishes.
PUBLISHER_UNPUBLISHED = GaugeOf(
    name="thrones_publisher_unpublished",
    unit="records",
    meaning="Handed over and not acknowledged by Kafka yet.",
    to_do="Growing: Kafka is away or slow. A gateway worker refuses with busy at MAX_UNPUBLISHED.",
)
PUBLISHER_ACKNOWLEDGED = CounterOf(
    name="thrones_publisher_acknowledged_total",
    unit="records",
    meaning="Written to all in-sync replicas.",
    labels=("topic",),
)
PUBLISHER_REPLACED = CounterOf(
    name="thrones_publisher_replaced_total",
    unit="producers",
    meaning="Producers given up after an error and made anew.",
    to_do="More than one a broker restart: look at Kafka's log.",
)

# Every process that reads a topic in a group.
CONSUMER_RECORDS = CounterOf(name="thrones_consumer_records_total", unit="records", meaning="Taken into work.")
CONSUMER_BATCH = HistogramOf(
    name="thrones_consumer_batch_records",
    unit="records",
    meaning="Size of a batch: small when idle, large when busy.",
    bounds=BATCH_RECORDS,
)
CONSUMER_OPEN = GaugeOf(
    name="thrones_consumer_open_records",
    unit="records",
    meaning="Taken and not acknowledged: charges in flight, or a batch being written.",
)
CONSUMER_PARTITIONS = GaugeOf(
    name="thrones_consumer_partitions",
    unit="partitions",
    meaning="Assigned to this member.",
    to_do="0: more members than partitions, or a rebalance is under way.",
)
CONSUMER_REBALANCES = CounterOf(
    name="thrones_consumer_rebalances_total",
    unit="rebalances",
    meaning="Assignments this member was given.",
    to_do="Many without scaling: members die or hang; look at their logs.",
)
DEAD_LETTERS = CounterOf(
    name="thrones_consumer_dead_letters_total",
    unit="records",
    meaning="Records that can never be processed, by their topic.",
    to_do="`thrones dlq list` says why.",
    labels=("topic",),
)

# Stages and reconciler.
ORDERS_PLACED = CounterOf(
    name="thrones_orders_placed_total",
    unit="orders",
    meaning="order.placed records by what Postgres made of them: new, known, stale, no_product; or parked.",
    labels=("outcome",),
)
ORDER_STORED = DelaysOf(
    name="thrones_order_stored_seconds",
    unit="seconds",
    meaning="Reservation to row in Postgres, new orders only.",
    to_do="Grows with the backlog of the order stage.",
    bounds=STEP_S,
)
ORDERS_SETTLED = CounterOf(
    name="thrones_orders_settled_total",
    unit="orders",
    meaning="Rows that got or had this status when an answer was settled; a repetition counts again.",
    labels=("status",),
)
ORDERS_LEFT = CounterOf(
    name="thrones_orders_left_total",
    unit="orders",
    meaning="Orders that ended while their product's books were not in force: the next books announce them.",
    to_do="Grows: a product stays closed; see thrones_relay_closed_products.",
)
VERDICTS_SET_ASIDE = CounterOf(
    name="thrones_verdicts_set_aside_total",
    unit="orders",
    meaning="Answers of the provider that Postgres can never store; the order needs reconciliation.",
    to_do="The log says why (`verdict set aside`); past the key's lifetime `thrones settle`.",
)
ANSWERS_TOO_LATE = CounterOf(
    name="thrones_answers_too_late_total",
    unit="orders",
    meaning="Definite answers, by what they said, for orders that had ended the other way; nothing was changed.",
    to_do="`confirmed`: the order was charged and is not sold. Refund it: the log names it (`answered too late`).",
    labels=("answer",),
)
ORDER_ENDED = DelaysOf(
    name="thrones_order_ended_seconds",
    unit="seconds",
    meaning="Reservation to terminal status.",
    to_do="Mostly the provider: compare thrones_provider_answer_seconds.",
    bounds=STEP_S,
)
PROVIDER_ANSWER = HistogramOf(
    name="thrones_provider_answer_seconds",
    unit="seconds",
    meaning="One attempt to charge, by what came of it: captured, declined, not_sent, unknown.",
    to_do="unknown or not_sent high: the provider is sick.",
    labels=("outcome",),
    bounds=ANSWER_S,
)
BREAKER_STATE = GaugeOf(
    name="thrones_breaker_state",
    unit="0 closed, 1 half-open, 2 open",
    meaning="Circuit breaker before the payment provider.",
    to_do="Open: payments wait, nothing fails. Is the provider up?",
)
BREAKER_OPENED = CounterOf(name="thrones_breaker_opened_total", unit="times", meaning="The breaker opened.")
RECONCILIATION_ORDERS = GaugeOf(
    name="thrones_reconciliation_orders",
    unit="orders",
    meaning="Payments whose outcome is unknown; at most the 5,000 that are looked at.",
)
RECONCILIATION_OLDEST = GaugeOf(
    name="thrones_reconciliation_oldest_seconds", unit="seconds", meaning="Age of the oldest of them."
)
RECONCILIATION_EXPIRED = GaugeOf(
    name="thrones_reconciliation_expired_orders",
    unit="orders",
    meaning="Those that the provider may have forgotten: nobody asks any more.",
    to_do="Ask the provider, then `thrones settle`.",
)

# Projector.
STATUS_PROJECTED = DelaysOf(
    name="thrones_status_projected_seconds",
    unit="seconds",
    meaning="Status reached to status readable in Redis.",
    bounds=STEP_S,
)

# Relay: the leader alone tells these.
GROUP_LAG = GaugeOf(
    name="thrones_group_lag_records",
    unit="records",
    meaning="Not processed yet.",
    to_do="`thrones lag --live`: is it draining, who works on it?",
    labels=("group", "partition"),
)
GROUP_DELAY = GaugeOf(
    name="thrones_group_delay_seconds",
    unit="seconds",
    meaning="Age of the oldest record not processed yet; 0 where there is none.",
    to_do="Growing: the group waits (thrones_waiting says for what) or needs members.",
    labels=("group",),
)
STOCK_UNITS = GaugeOf(
    name="thrones_stock_units",
    unit="units",
    meaning="A product's books in Redis: initial, available, held, sold.",
    labels=("product", "part"),
)
REDIS_MEMORY = GaugeOf(
    name="thrones_redis_memory_bytes",
    unit="bytes",
    meaning="Redis' memory: used (what counts against its maxmemory) and max (0: no limit).",
    to_do="Purchases are refused from REDIS_FULL_AT_SHARE (0.9) of max on; docs/capacity.md has the sum.",
    labels=("part",),
)
RELAY_LEADING = GaugeOf(name="thrones_relay_leading", unit="0 or 1", meaning="1 while this process leads.")
RELAY_PUSHES = CounterOf(
    name="thrones_relay_pushes_total",
    unit="orders",
    meaning="Stranded orders pushed on, by the step they were waiting for.",
    to_do="Flat as a rule: a push is an order that somebody left behind. After a rebuild settle is announced again.",
    labels=("step",),
)
RELAY_REBUILDS = CounterOf(
    name="thrones_relay_rebuilds_total",
    unit="products",
    meaning="Books made anew by the relay.",
    to_do="One a product and Redis run. `closed` means the books disagreed, `books went back` that older ones took their place: "
    "read the relay's log.",
    labels=("reason",),
)
RELAY_REBUILD_FAILURES = CounterOf(
    name="thrones_relay_rebuild_failures_total",
    unit="attempts",
    meaning="Rebuilds that failed; they are tried again.",
    to_do="The reason is in the relay's log.",
)
RELAY_CLOSED = GaugeOf(
    name="thrones_relay_closed_products",
    unit="products",
    meaning="Whose books are not in force: buying answers stock_not_verified.",
    to_do="Longer than seconds: a rebuild needs Redis, Kafka and Postgres.",
)

# Supervisor, and a gateway's parent.
SUPERVISOR_STARTS = CounterOf(
    name="thrones_supervisor_starts_total", unit="processes", meaning="Processes started.", labels=("process",)
)
SUPERVISOR_DEATHS = CounterOf(
    name="thrones_supervisor_deaths_total",
    unit="processes",
    meaning="Processes that ended unasked; each is started again.",
    to_do="`thrones logs PROCESS`: the last lines before the end.",
    labels=("process",),
)

# The mock payment provider.
MOCK_CHARGES = CounterOf(
    name="thrones_mock_charges_total",
    unit="answers",
    meaning="The mock provider's answers by HTTP status; none: a hang or a reset.",
    labels=("answer",),
)

# Every process.
LOOP_DELAY = HistogramOf(
    name="thrones_loop_delay_seconds",
    unit="seconds",
    meaning="How late the event loop turns, sampled twice a second.",
    to_do="High: the process has too much to do, or the machine has.",
    bounds=LOOP_S,
)
WAITING = GaugeOf(
    name="thrones_waiting",
    unit="tasks",
    meaning="Declared waits for a dependency: postgres, redis, kafka.",
    to_do="Mend that dependency; the process goes on by itself.",
    labels=("what",),
)
POSTGRES_REFUSALS = CounterOf(
    name="thrones_postgres_refusals_total",
    unit="statements",
    meaning="Statements and connections that Postgres refused, by SQLSTATE; `none`: no answer at all.",
    to_do="22... and 23...: a record that can never be stored, among the dead letters. All else waits: mend Postgres.",
    labels=("sqlstate",),
)

ALL: tuple[Definition, ...] = tuple(value for value in globals().values() if isinstance(value, Definition))
