"""A purchase with the client that openapi-python-client makes of /openapi.json; prints what it learnt as one line of JSON."""

import json
import sys

from backend_of_thrones_client import AuthenticatedClient, Client
from backend_of_thrones_client.api.accounts import register
from backend_of_thrones_client.api.orders import buy_flash, get_order_status
from backend_of_thrones_client.api.products import get_product
from backend_of_thrones_client.models import Accepted, OrderStatus, Problem, Product, Purchase, Registration, SignedIn

base_url, product, email = sys.argv[1:]
anybody = Client(base_url=base_url)

arya = Registration(name="Arya", email=email, password="stick-them-with-the-pointy-end")
account = register.sync(client=anybody, body=arya)
assert isinstance(account, SignedIn), account
again = register.sync(client=anybody, body=arya)
assert isinstance(again, Problem), again
assert again.code == "email_taken", again

shown = get_product.sync(int(product), client=anybody)
assert isinstance(shown, Product), shown

buyer = AuthenticatedClient(base_url=base_url, token=account.token)
bought = buy_flash.sync(client=buyer, body=Purchase(product_id=int(product)), idempotency_key=email)
assert isinstance(bought, Accepted), bought
order = get_order_status.sync(bought.order_id, client=buyer, wait=0.1)
assert isinstance(order, OrderStatus), order

refused = buy_flash.sync(client=buyer, body=Purchase(product_id=int(product), quantity=2))
assert isinstance(refused, Problem), refused

learnt = {"stock": shown.stock, "quantity": order.quantity, "orderId": str(order.order_id), "refused": refused.code}
print(json.dumps(learnt))
