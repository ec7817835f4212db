"""All metrics: name, unit, meaning and, where it helps, what to do. `python -m infra.metrics.page` writes docs/metrics.md.

Names follow Prometheus' conventions: `thrones_`, the component, the thing, the base unit; `_total` for counters. No label
names a user or an order. Prometheus adds `role` and `member` per target, so no metric has them.
"""

from infra.metrics.kinds import CounterOf, Definition, DelaysOf, GaugeOf, HistogramOf

FAST_S = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
LOOP_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
STEP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ANSWER_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
BATCH_RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)

# Gateway and sse: each worker counts; the worker that answers a scrape sums over all of them.
GATEWAY_ACCEPTED = CounterOf(name="thrones_gateway_accepted_total", unit="answers", meaning="202s to buy-flash.")
GATEWAY_ACKNOWLEDGED = HistogramOf(
    name="thrones_gateway_acknowledged_seconds",
    unit="seconds",
    meaning="From request to 202, including the wait for Kafka (at most 0.25 s).",
    to_do="Slow: check Redis' fsync, then Kafka.",
    bounds=FAST_S,
)
GATEWAY_REFUSED = CounterOf(
    name="thrones_gateway_refused_total",
    unit="answers",
    meaning="Problem answers by code.",
    to_do="sold_out is normal in a sale; busy, unavailable and stock_not_verified are not.",
    labels=("code",),
)
GATEWAY_OUTCOME_UNKNOWN = CounterOf(
    name="thrones_gateway_outcome_unknown_total",
    unit="answers",
    meaning="504 answers: the reply to a reservation was lost twice.",
    to_do="More than a few: check Redis' latency and network.",
)
GATEWAY_PUBLISH_TIMEOUTS = CounterOf(
    name="thrones_gateway_publish_timeouts_total",
    unit="records",
    meaning="Publishes not acknowledged within 250 ms; the buyer still gets a 202.",
    to_do="Check Kafka.",
)
GATEWAY_STREAMS = GaugeOf(name="thrones_gateway_streams", unit="streams", meaning="Open event streams.")
GATEWAY_STREAMS_CUT = CounterOf(
    name="thrones_gateway_streams_cut_total",
    unit="streams",
    meaning="Streams closed because their reader stopped reading or vanished.",
)
GATEWAY_FAILED_LOGINS = CounterOf(
    name="thrones_gateway_failed_logins_total",
    unit="logins",
    meaning="Wrong email or password.",
    to_do="Many: somebody guesses passwords. The limits per account and per address slow that down.",
)

# Every process that publishes.
PUBLISHER_UNPUBLISHED = GaugeOf(
    name="thrones_publisher_unpublished",
    unit="records",
    meaning="Records published but not acknowledged by Kafka yet.",
    to_do="Growing: Kafka is down or slow. From MAX_UNPUBLISHED on, a gateway worker answers busy.",
)
PUBLISHER_ACKNOWLEDGED = CounterOf(
    name="thrones_publisher_acknowledged_total",
    unit="records",
    meaning="Records written to all in-sync replicas.",
    labels=("topic",),
)
PUBLISHER_REPLACED = CounterOf(
    name="thrones_publisher_replaced_total",
    unit="producers",
    meaning="Producers replaced after an error.",
    to_do="More than one per broker restart: read Kafka's log.",
)

# Every process that reads a topic in a group.
CONSUMER_RECORDS = CounterOf(name="thrones_consumer_records_total", unit="records", meaning="Taken into work.")
CONSUMER_BATCH = HistogramOf(
    name="thrones_consumer_batch_records",
    unit="records",
    meaning="Batch size: small when idle, large when busy.",
    bounds=BATCH_RECORDS,
)
CONSUMER_OPEN = GaugeOf(
    name="thrones_consumer_open_records",
    unit="records",
    meaning="Records read but not acknowledged: charges in flight, or a batch being written.",
)
CONSUMER_WAIT = GaugeOf(
    name="thrones_consumer_wait_seconds",
    unit="seconds",
    meaning="How long an order would wait in the queues of this member, as gateways are told.",
    to_do="Near MAX_WAIT_S gateways refuse purchases (busy): add members of the stage, or CPU.",
)
CONSUMER_PARTITIONS = GaugeOf(
    name="thrones_consumer_partitions",
    unit="partitions",
    meaning="Partitions assigned to this member.",
    to_do="0: more members than partitions, or a rebalance is in progress.",
)
CONSUMER_REBALANCES = CounterOf(
    name="thrones_consumer_rebalances_total",
    unit="rebalances",
    meaning="Partition assignments of this member.",
    to_do="Many without scaling: members die or hang; read their logs.",
)
DEAD_LETTERS = CounterOf(
    name="thrones_consumer_dead_letters_total",
    unit="records",
    meaning="Records that can never be processed, by source topic.",
    to_do="`thrones dlq list` shows the reasons.",
    labels=("topic",),
)

# Stages and reconciler.
ORDERS_PLACED = CounterOf(
    name="thrones_orders_placed_total",
    unit="orders",
    meaning="order.placed records by result in Postgres: new, known, stale, no_product; or parked.",
    labels=("outcome",),
)
ORDER_STORED = DelaysOf(
    name="thrones_order_stored_seconds",
    unit="seconds",
    meaning="From reservation to row in Postgres, new orders only.",
    to_do="It grows with the backlog of the order stage.",
    bounds=STEP_S,
)
ORDERS_SETTLED = CounterOf(
    name="thrones_orders_settled_total",
    unit="orders",
    meaning="Settled answers by the status of the row afterwards; a repeated answer counts again.",
    labels=("status",),
)
ORDERS_LEFT = CounterOf(
    name="thrones_orders_left_total",
    unit="orders",
    meaning="Orders that ended while the books of their product were not in force: the next rebuild announces them.",
    to_do="Growing: a product stays closed; see thrones_relay_closed_products.",
)
VERDICTS_SET_ASIDE = CounterOf(
    name="thrones_verdicts_set_aside_total",
    unit="orders",
    meaning="Provider answers that Postgres can never store; the order needs reconciliation.",
    to_do="The log has the reason (`verdict set aside`). After the lifetime of the key: `thrones settle`.",
)
ANSWERS_TOO_LATE = CounterOf(
    name="thrones_answers_too_late_total",
    unit="orders",
    meaning="Definite answers, by result, for orders that had already ended with the opposite result; nothing was changed.",
    to_do="`confirmed`: the order was charged but not sold. Refund it: the log names it (`answered too late`).",
    labels=("answer",),
)
ORDER_ENDED = DelaysOf(
    name="thrones_order_ended_seconds",
    unit="seconds",
    meaning="From reservation to terminal status.",
    to_do="Most of it is the provider: compare thrones_provider_answer_seconds.",
    bounds=STEP_S,
)
PROVIDER_ANSWER = HistogramOf(
    name="thrones_provider_answer_seconds",
    unit="seconds",
    meaning="Duration of one attempt to charge, by outcome: captured, declined, not_sent, unknown.",
    to_do="Many unknown or not_sent: the provider is in trouble.",
    labels=("outcome",),
    bounds=ANSWER_S,
)
BREAKER_STATE = GaugeOf(
    name="thrones_breaker_state",
    unit="0 closed, 1 half-open, 2 open",
    meaning="State of the circuit breaker for the payment provider.",
    to_do="Open: payments wait, none fails. Check whether the provider is up.",
)
BREAKER_OPENED = CounterOf(name="thrones_breaker_opened_total", unit="times", meaning="The breaker opened.")
RECONCILIATION_ORDERS = GaugeOf(
    name="thrones_reconciliation_orders",
    unit="orders",
    meaning="Payments with an unknown outcome; at most the 5,000 oldest are counted.",
)
RECONCILIATION_OLDEST = GaugeOf(
    name="thrones_reconciliation_oldest_seconds",
    unit="seconds",
    meaning="Age of the oldest payment with an unknown outcome.",
)
RECONCILIATION_EXPIRED = GaugeOf(
    name="thrones_reconciliation_expired_orders",
    unit="orders",
    meaning="Payments with an unknown outcome that the provider may have forgotten: the reconciler no longer asks.",
    to_do="Ask the provider, then `thrones settle`.",
)

# Projector.
STATUS_PROJECTED = DelaysOf(
    name="thrones_status_projected_seconds",
    unit="seconds",
    meaning="From a new status to the status being readable in Redis.",
    bounds=STEP_S,
)

# Relay: only the leader exports these.
GROUP_LAG = GaugeOf(
    name="thrones_group_lag_records",
    unit="records",
    meaning="Not processed yet.",
    to_do="`thrones lag --live` shows whether it drains, and which members process it.",
    labels=("group", "partition"),
)
GROUP_DELAY = GaugeOf(
    name="thrones_group_delay_seconds",
    unit="seconds",
    meaning="Age of the oldest unprocessed record; 0 if there is none.",
    to_do="Growing: the group waits (thrones_waiting says for what) or needs more members.",
    labels=("group",),
)
STOCK_UNITS = GaugeOf(
    name="thrones_stock_units",
    unit="units",
    meaning="Units of a product in Redis: initial, available, held, sold.",
    labels=("product", "part"),
)
REDIS_MEMORY = GaugeOf(
    name="thrones_redis_memory_bytes",
    unit="bytes",
    meaning="Redis' memory: used (counted against maxmemory) and max (0: no limit).",
    to_do="Above REDIS_FULL_AT_SHARE (0.9) of max purchases are refused; docs/capacity.md has the calculation.",
    labels=("part",),
)
RELAY_LEADING = GaugeOf(name="thrones_relay_leading", unit="0 or 1", meaning="1 while this process leads.")
RELAY_PUSHES = CounterOf(
    name="thrones_relay_pushes_total",
    unit="orders",
    meaning="Stranded orders that the relay pushed, by the step for which they waited.",
    to_do="Normally flat: each push is an order that a stage left behind. After a rebuild, settle is announced again.",
    labels=("step",),
)
RELAY_REBUILDS = CounterOf(
    name="thrones_relay_rebuilds_total",
    unit="products",
    meaning="Rebuilds of books by the relay, by cause.",
    to_do="One per product and Redis run. `closed`: the books were inconsistent. `books went back`: older books replaced "
    "them. Read the relay's log.",
    labels=("reason",),
)
RELAY_REBUILD_FAILURES = CounterOf(
    name="thrones_relay_rebuild_failures_total",
    unit="attempts",
    meaning="Failed rebuilds; they are retried.",
    to_do="The relay's log has the reason.",
)
RELAY_CLOSED = GaugeOf(
    name="thrones_relay_closed_products",
    unit="products",
    meaning="Products whose books are not in force: buying answers stock_not_verified.",
    to_do="For more than seconds: a rebuild needs Redis, Kafka and Postgres.",
)

# Supervisor, and a gateway's parent.
SUPERVISOR_STARTS = CounterOf(
    name="thrones_supervisor_starts_total", unit="processes", meaning="Processes started.", labels=("process",)
)
SUPERVISOR_DEATHS = CounterOf(
    name="thrones_supervisor_deaths_total",
    unit="processes",
    meaning="Processes that ended without being stopped; each is started again.",
    to_do="`thrones logs PROCESS` shows the last lines before the end.",
    labels=("process",),
)

# The mock payment provider.
MOCK_CHARGES = CounterOf(
    name="thrones_mock_charges_total",
    unit="answers",
    meaning="Answers of the mock provider by HTTP status; none: a hang or a reset.",
    labels=("answer",),
)

# Every process.
LOOP_DELAY = HistogramOf(
    name="thrones_loop_delay_seconds",
    unit="seconds",
    meaning="How late the event loop runs, sampled twice a second.",
    to_do="High: the process or the machine is overloaded.",
    bounds=LOOP_S,
)
WAITING = GaugeOf(
    name="thrones_waiting",
    unit="tasks",
    meaning="Declared waits for a dependency: postgres, redis, kafka.",
    to_do="Repair that dependency; the process then continues by itself.",
    labels=("what",),
)
POSTGRES_REFUSALS = CounterOf(
    name="thrones_postgres_refusals_total",
    unit="statements",
    meaning="Statements and connections that Postgres refused, by SQLSTATE; `none`: no answer at all.",
    to_do="22... and 23...: the record can never be stored and is a dead letter. All others wait: repair Postgres.",
    labels=("sqlstate",),
)

ALL: tuple[Definition, ...] = tuple(value for value in globals().values() if isinstance(value, Definition))
