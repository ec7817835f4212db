// A purchase with the types that openapi-typescript makes of /openapi.json; prints what it learnt as one line of JSON.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

const [baseUrl = "", product = "", email = ""] = process.argv.slice(2);
const api = createClient<paths>({ baseUrl });

const account = await api.POST("/api/auth/register", {
  body: { name: "Arya", email, password: "stick-them-with-the-pointy-end" },
});
if (!account.data) throw new Error(account.error.detail);
const headers = { Authorization: `Bearer ${account.data.token}` };

const id = Number(product);
const shown = await api.GET("/api/products/{id}", { params: { path: { id } } });
const stock: number | undefined = shown.data?.stock;

// The quantity is left out: it is 1 unless given.
const bought = await api.POST("/api/order/buy-flash", {
  headers,
  params: { header: { "Idempotency-Key": email } },
  body: { productId: id },
});
if (!bought.data) throw new Error(bought.error.detail);
const order = await api.GET("/api/order/{id}/status", {
  headers,
  params: { path: { id: bought.data.orderId }, query: { wait: 0.1 } },
});

const refused = await api.POST("/api/order/buy-flash", { headers, body: { productId: id, quantity: 2 } });
if (!refused.error) throw new Error("two of one unit were sold");
const code: string = refused.error.code;

console.log(JSON.stringify({ stock, quantity: order.data?.quantity, orderId: order.data?.orderId, refused: code }));
