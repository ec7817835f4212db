"""What must hold: at every instant, when all is quiet, and - by the audit's own books - once it is over."""

import re
from collections import Counter, defaultdict
from typing import Any

from consumers.audit.balance import AuditReport, balance
from consumers.audit.facts import AuditedOrder, Capture, ClientAnswers, PostgresBook, ProductFacts
from consumers.audit.readers import read_log
from sale.books import entry, keys
from sale.books.books import RedisBook
from sale.orders import REFUSED_BY_DATABASE
from schemas import topics
from schemas.ids import OrderId, ProductId
from schemas.order_state import Status
from schemas.topics import CONSUMED_BY

from .actors import CURRENT, Actor
from .faults import CALM
from .kafka_ports import OffsetsPort
from .settings import SETTINGS

GIVEN_BACK = ("failed", "payment_failed")


class Violation(AssertionError):
    """An invariant was broken, at this step."""


class Verdict:
    """The books of one world."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.restocked: set[ProductId] = set()  # whose new units are on record, and not on sale yet
        self._violations: list[str] = []

    def violated(self, what: str) -> None:
        if what not in self._violations[-1:]:
            self._world.note(f"VIOLATION {what}")
            self._violations.append(what)

    def raise_if_violated(self) -> None:
        if self._violations:
            raise Violation("; ".join(self._violations))

    # At every instant

    def check_instant(self) -> None:
        rows, data = self._world.postgres.orders, self._world.redis.data
        for product in self._world.products:
            stock = data.get(keys.stock(product), {})
            if stock.get("run") == self._world.redis.run and stock.get("state") != "closed":
                self._check_books(product, stock, data.get(keys.held(product), {}))
        charged: Counter[int] = Counter()
        for order_id, *_ in self._world.provider.captures:
            charged[rows[order_id]["product_id"]] += rows[order_id]["quantity"]
        for product, units in charged.items():
            initial = self._world.postgres.products[product]["initial"]
            if units > initial:
                self.violated(f"I3: product {product}: {units} units charged of {initial}")

    def _check_books(self, product: ProductId, stock: dict[str, str], held_entries: dict[str, str]) -> None:
        initial, available, held, sold = (int(stock[name]) for name in ("initial", "available", "held", "sold"))
        if initial != available + held + sold or min(available, held, sold) < 0:
            self.violated(f"I1: product {product}: {initial} != {available} + {held} + {sold}")
        units = [int(line.split(" ", 5)[4]) for line in held_entries.values() if line[0] == "h"]
        of_entries, orders = sum(units), sum(quantity > 0 for quantity in units)
        if orders != int(stock["held_orders"]):
            self.violated(f"I1: product {product}: {stock['held_orders']} orders are held, entries say {orders}")
        if of_entries != held:
            self.violated(f"I1: product {product}: {held} units held, entries say {of_entries}")

    # When quiet

    def not_quiet(self) -> str | None:
        world = self._world
        if world.crowd.clients.waiting or world.late or self.restocked:
            return "clients are waiting, or something is still on its way"
        if not world.log.exists:
            return "the topics have not been made again"
        for group, topic in CONSUMED_BY.items():
            if world.log.lag(group, topic.name):
                return f"{group} has not processed everything"
        unended = [row for row in world.postgres.orders.values() if row["status"] not in (*GIVEN_BACK, "confirmed")]
        if unended:
            return f"{len(unended)} orders have not ended, e.g. {unended[0]['id']} is {unended[0]['status']}"
        if world.postgres.parked:
            return f"{len(world.postgres.parked)} orders are parked"
        return next(filter(None, map(self._books_not_quiet, world.products)), None) or self._blind_watcher()

    def _books_not_quiet(self, product: ProductId) -> str | None:
        left = self._world.redis.data.get(keys.held(product), {})
        if left:
            return f"held entries are left: {dict(list(left.items())[:2])}"
        book = self._redis_book(product)
        if not book.in_force:
            return f"the books of {product} are not in force"
        if self.refused_by_database(product, book.epoch):
            return f"the database refused a unit of {product}, and its books were not made anew"
        return None

    def refused_by_database(self, product: ProductId, epoch: int) -> bool:
        return any(
            row["product_id"] == product and row["epoch"] == epoch and row["reason"] == REFUSED_BY_DATABASE
            for row in self._world.postgres.orders.values()
        )

    def _blind_watcher(self) -> str | None:
        for actor, watcher in self._world.crowd.watchers:
            stock = self._world.redis.data[keys.stock(watcher.product)]
            if actor.alive and watcher.stock != int(stock["available"]):
                return f"I10: a stream shows {watcher.stock} of {stock['available']} available"
        return None

    # Once it is over

    async def balance(self) -> AuditReport:
        world = self._world
        assert world.chances is CALM
        CURRENT.set(Actor("auditor"))
        logs = await read_log(SETTINGS, OffsetsPort(world))  # type: ignore[arg-type] # all of Offsets that it uses
        facts = [
            ProductFacts(
                product,
                self._redis_book(product),
                self._postgres_book(product),
                logs.of(product),
                self._captures(product),
            )
            for product in world.products
        ]
        report = balance(facts, client_log=self._client_log(), other_problems=[*self._letters(), *self._sale_rules()])
        problems = [
            problem for problem in report.problems if not (self._is_falsified(problem) or self._was_refused(problem))
        ]
        return AuditReport(ok=not problems, products=report.products, problems=problems)

    def _is_falsified(self, problem: str) -> bool:
        """Units that Redis was made to believe in follow from nothing; that is the falsification, not its consequence."""
        for product, epoch in self._world.striker.too_high.items():
            if problem.startswith(f"product {product}: "):
                if "available does not follow" in problem and f"epoch {epoch} " in problem:
                    return True
                if found := re.search(r"opened with units of no order: epoch (\d+)", problem):
                    return int(found[1]) > int(epoch)  # its chain says that they are on sale
        return False

    def _was_refused(self, problem: str) -> bool:
        """An order that the database refuses whatever is tried: the audit cannot know that no value of it was any good."""
        return "failed although there were units" in problem and any(
            order_id in problem for order_id in self._world.postgres.refused
        )

    def _letters(self) -> list[str]:
        """Everything that cannot be processed is among the dead letters, and nothing else."""
        world = self._world
        letters = {record.key for record in world.log.every(topics.DEAD_LETTERS.name)}
        kept = {record.key for topic in CONSUMED_BY.values() for record in world.log.every(topic.name)}
        refused = {order_id.encode() for order_id in world.postgres.refused}
        missing = world.striker.poison & kept - letters
        return [
            *(f"no dead letter of poison {key!r}" for key in sorted(missing)),
            *(f"dead letter of a good record: {key!r}" for key in sorted(letters - world.striker.poison - refused)),
        ]

    def _sale_rules(self) -> list[str]:
        """Nobody bought outside of the window, and nobody more than he may."""
        problems, units = [], Counter[tuple[int, int]]()
        excused = {(r["product_id"], r["user_id"]) for r in self._world.postgres.orders.values() if self._is_lost(r)}
        for row in self._world.postgres.orders.values():
            product = self._world.postgres.products[row["product_id"]]
            if product["opens_at"] and row["placed_at_ms"] < product["opens_at"].timestamp() * 1000:
                problems.append(f"window: {row['id']} was placed before the sale opened")
            if product["closes_at"] and row["placed_at_ms"] >= product["closes_at"].timestamp() * 1000:
                problems.append(f"window: {row['id']} was placed after the sale closed")
            if row["status"] not in GIVEN_BACK:
                units[row["product_id"], row["user_id"]] += row["quantity"]
        for (product_id, user), count in units.items():
            limit = self._world.postgres.products[product_id]["per_user_limit"]
            if limit and count > limit and (product_id, user) not in excused:
                problems.append(f"limit: user {user} has {count} of product {product_id}, {limit} are allowed")
        return problems

    def _is_lost(self, row: dict[str, Any]) -> bool:
        return row["id"] in self._world.striker.lost

    def _captures(self, product: ProductId) -> list[Capture]:
        rows = self._world.postgres.orders
        return [Capture(*c) for c in self._world.provider.captures if rows[c[0]]["product_id"] == product]

    def _client_log(self) -> ClientAnswers:
        """What was lost by every store was accepted, and is owed nothing."""
        clients, rows = self._world.crowd.clients, self._world.postgres.orders
        forgiven = self._world.striker.lost
        lost = {id_ for id_ in clients.accepted if id_ in forgiven and id_ not in rows}
        told: defaultdict[Any, set[str]] = defaultdict(set)
        for order_id, wish in clients.accepted.items():
            if wish[1] is not None:
                told[wish].add(order_id)
        return ClientAnswers(
            accepted=frozenset(clients.accepted.keys() - lost),
            unknown=frozenset(clients.unknown | lost),
            refused=frozenset(clients.refused - clients.accepted.keys() - clients.unknown),
            doubled_keys={
                (w[0], w[1]): frozenset(ids) for w, ids in told.items() if len(ids) > 1 and not ids & forgiven
            },
        )

    def _redis_book(self, product: ProductId) -> RedisBook:
        stock = self._world.redis.data.get(keys.stock(product), {})
        numbers = {n: int(stock.get(n, 0)) for n in ("epoch", "version", "initial", "available", "held", "sold")}
        held = self._world.redis.data.get(keys.held(product), {})
        buyers = self._world.redis.data.get(keys.buyers(product), {})
        return RedisBook(
            in_force=stock.get("run") == self._world.redis.run and stock.get("state") != "closed",
            **numbers,
            entries={id_: entry.parse(OrderId(id_), line.encode()) for id_, line in held.items()},
            buyers={int(user): int(units) for user, units in buyers.items()},
        )

    def _postgres_book(self, product: ProductId) -> PostgresBook:
        names = (
            "id",
            "user_id",
            "quantity",
            "unit_price_cents",
            "currency",
            "epoch",
            "placed_at_ms",
            "key_hash",
            "reason",
        )
        rows = [row for row in self._world.postgres.orders.values() if row["product_id"] == product]
        orders = [
            AuditedOrder(
                status=Status(row["status"]),
                created_at_ms=int(row["created_at"].timestamp() * 1000),
                updated_at_ms=int(row["updated_at"].timestamp() * 1000),
                **{name: row[name] for name in names},
            )
            for row in rows
        ]
        of_product = self._world.postgres.products[product]
        closes_at = of_product["closes_at"]
        return PostgresBook(
            of_product["initial"],
            of_product["taken"],
            of_product["epoch"],
            orders,
            closes_at_ms=int(closes_at.timestamp() * 1000) if closes_at else None,
        )
