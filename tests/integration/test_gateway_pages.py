"""What a browser, or a client that follows what it was told, finds: pages, problems' types, the status where it is said to be."""

import re

from gateway.http.problems import KINDS, public_code

from .gateway_fixtures import GatewayClient, gateway, settings

__all__ = ["gateway", "settings"]

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


async def test_the_status_is_where_the_acceptance_says(gateway: GatewayClient) -> None:
    """`checkStatusUrl`, followed as it stands, and `Location` answer alike; waits, owners and refusals too."""
    await gateway.verify_books()
    product = await gateway.product(1)
    bought = await gateway.buy({"productId": product})
    paths = (bought.json["checkStatusUrl"], bought.headers["Location"])
    assert paths[0] != paths[1]
    answers = [await gateway.ask("GET", path + "?wait=0.01", headers=gateway.bearer) for path in paths]
    assert (answers[0].status, answers[0].body) == (200, answers[1].body)
    for path in paths:
        assert (await gateway.ask("GET", path)).is_problem(401, "unauthorized")
        assert (await gateway.ask("GET", path, headers=gateway.another_user().bearer)).is_problem(404, "not_found")
        assert (await gateway.ask("GET", path + "?wait=x", headers=gateway.bearer)).is_problem(400, "invalid_request")
        assert (await gateway.ask("HEAD", path, headers=gateway.bearer)).status == 200


async def test_every_problem_type_leads_to_what_it_means(gateway: GatewayClient) -> None:
    """JSON for programs, a page for browsers; what is no code of ours is 404."""
    for name, kind in KINDS.items():
        code = public_code(name)
        told = await gateway.ask("GET", f"/problems/{code}")
        assert told.status == 200
        assert (told.json["code"], told.json["status"], told.json["type"]) == (code, kind.status, f"/problems/{code}")
        page = await gateway.ask("GET", f"/problems/{code}", headers=BROWSER)
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert (told.headers["Vary"], page.headers["Vary"]) == ("Accept", "Accept")
        assert code in page.body.decode()
    for odd in ("invalid_credentials", "nonsense", "..%2fapp.py"):
        assert (await gateway.ask("GET", f"/problems/{odd}")).is_problem(404, "not_found"), odd


async def test_the_landing_page_says_what_runs_here_and_leads_on(gateway: GatewayClient) -> None:
    """Every page stands under a policy that runs nothing inside it, and every link on it answers."""
    page = await gateway.ask("GET", "/", headers=BROWSER)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"Backend of Thrones" in page.body
    links = set(re.findall(rb'(?:href|src)="([^"]+)"', page.body))
    assert b"/docs" in links
    for link in links:
        assert (await gateway.ask("GET", link.decode(), headers=BROWSER)).status == 200, link
    for path in ("/", "/docs", "/docs/", "/problems/busy"):
        answer = await gateway.ask("GET", path, headers=BROWSER)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy, path
        assert not re.search(rb"<style|<script(?! src)| style=| on\w+=", answer.body), path
    assert (await gateway.ask("GET", "/docs/")).body == (await gateway.ask("GET", "/docs")).body
    icon = await gateway.ask("GET", "/favicon.ico")
    assert (icon.status, icon.headers["Content-Type"]) == (200, "image/png")


async def test_a_member_given_twice_is_named(gateway: GatewayClient) -> None:
    """In registering, logging in and buying, also where it is spelled another way."""
    product = await gateway.product(1)
    account = b'"name": "Arya", "email": "a@b.example", "password": "valar morghulis"'
    for path, body, member in (
        ("/api/auth/register", b'{%s, "name": "No one"}' % account, "name"),
        ("/api/auth/register", b'{%s, "passw\\u006frd": "valar dohaeris"}' % account, "password"),
        ("/api/auth/login", b'{"email": "a@b.example", "password": "x", "email": "c@d.example"}', "email"),
        ("/api/order/buy-flash", b'{"productId": %d, "quantity": 1, "quantity": 2}' % product, "quantity"),
        ("/api/order/buy-flash", b'{"productId": %d, "productId": %d}' % (product, product), "productId"),
    ):
        headers = {"Content-Type": "application/json", **gateway.bearer}
        answer = await gateway.ask("POST", path, data=body, headers=headers)
        assert answer.is_problem(400, "invalid_request")
        assert answer.json["detail"] == f"The member {member} is given twice."
