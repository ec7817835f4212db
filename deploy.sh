#!/usr/bin/env bash
# Deploy everything in containers, in seven steps: stop, build, start scaled, wait until healthy, product, stock, clustering.
# Data is kept: deployed again, it changes nothing that is there. Sizes: GATEWAYS=2 API_WORKERS=2 ORDER_STAGES=1
# PAYMENT_STAGES=2 PORT=8080. Further arguments go to `docker compose up`, e.g. `--scale payment-stage=4`.
set -euo pipefail
cd "$(dirname "$0")"

GATEWAYS=${GATEWAYS:-2}
export API_WORKERS=${API_WORKERS:-2}
ORDER_STAGES=${ORDER_STAGES:-1}
PAYMENT_STAGES=${PAYMENT_STAGES:-2}
HEALTHY_WITHIN_S=${HEALTHY_WITHIN_S:-180}

step() { printf '\n[%s/7] %s\n' "$1" "$2"; }
fail() { printf 'deploy.sh: %s\n' "$*" >&2; exit 1; }

if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose)
elif command -v docker-compose >/dev/null; then COMPOSE=(docker-compose)
else fail "docker compose is needed (https://docs.docker.com/compose/install/)"; fi

# Secrets are drawn once and kept: a new POSTGRES_PASSWORD would not open the old database.
touch .env
chmod 600 .env
secret() { grep -q "^$1=" .env || printf '%s=%s\n' "$1" "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >> .env; }
secret POSTGRES_PASSWORD
secret JWT_SECRET
port=${PORT:-$(sed -n 's/^PORT=//p' .env | tail -n 1)}
url=http://127.0.0.1:${port:-8080}

unhealthy() { # names of containers that are not healthy yet; those without a health check count when they run
  local ids
  ids=$("${COMPOSE[@]}" ps -q)
  [ -n "$ids" ] || { echo none; return; }
  # shellcheck disable=SC2086 # one argument an id
  docker inspect -f '{{.Name}} {{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}} {{.State.ExitCode}}' $ids |
    awk '!($2 == "healthy" || $2 == "running" || ($2 == "exited" && $3 == 0)) { sub("^/", "", $1); print $1 " (" $2 ")" }'
}

step 1 "stop what runs; volumes stay"
"${COMPOSE[@]}" down --remove-orphans --timeout 60

step 2 "build the image"
"${COMPOSE[@]}" build

step 3 "start: $GATEWAYS gateways x $API_WORKERS workers, $ORDER_STAGES order and $PAYMENT_STAGES payment stages"
"${COMPOSE[@]}" up -d --scale "gateway=$GATEWAYS" --scale "order-stage=$ORDER_STAGES" \
  --scale "payment-stage=$PAYMENT_STAGES" "$@" || { "${COMPOSE[@]}" logs --tail 50; fail "not started; the logs are above"; }

step 4 "wait until everything is healthy (at most $HEALTHY_WITHIN_S s)"
until=$((SECONDS + HEALTHY_WITHIN_S))
while waiting=$(unhealthy); [ -n "$waiting" ] || ! curl -fsS -o /dev/null "$url/health/ready" 2>/dev/null; do
  [ "$SECONDS" -lt "$until" ] || fail "not healthy in time: ${waiting:-nginx at $url}; see ${COMPOSE[*]} logs"
  sleep 2
done

step 5 "product 1"
"${COMPOSE[@]}" run --rm -T deploy deploy
curl -fsS "$url/api/products/1" || fail "product 1 is not on sale at $url"
echo

step 6 "its stock is loaded and the books balance"
"${COMPOSE[@]}" run --rm -T tools audit --product 1 --wait 60 || fail "the books of product 1 do not balance"

step 7 "clustering: each gateway has its workers"
gateways=$("${COMPOSE[@]}" ps -q gateway)
[ "$(wc -w <<< "$gateways")" -ge "$GATEWAYS" ] || fail "fewer than $GATEWAYS gateways run"
for id in $gateways; do
  workers=$(docker exec "$id" thrones status --json | grep -o '"role": "gateway"' | wc -l)
  [ "$workers" -eq "$API_WORKERS" ] || fail "gateway ${id:0:12} has $workers workers instead of $API_WORKERS"
  echo "gateway ${id:0:12}: $workers workers"
done

printf '\nready: %s  (%s ps, %s logs -f)\n' "$url" "${COMPOSE[*]}" "${COMPOSE[*]}"
