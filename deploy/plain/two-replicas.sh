#!/usr/bin/env bash
# Runs two gateways behind haproxy, on one PostgreSQL and one Redis, with a sandbox, all on loopback, until Ctrl-C.
# It needs these programs on the PATH: birdwire, haproxy, redis-server, python3, and PostgreSQL's initdb, pg_ctl and createdb.
# Usage: two-replicas.sh [FOLDER]     FOLDER keeps data and logs. The default is a temporary folder, deleted at the end.
# haproxy listens on PORT (8700). The script also uses the next five ports.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
port=${PORT:-8700}
x=$((port + 1)) one=$((port + 2)) two=$((port + 3)) postgres=$((port + 4)) redis=$((port + 5))
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
umask 077

for needed in birdwire haproxy redis-server initdb pg_ctl createdb python3; do
  command -v "$needed" >/dev/null || { echo "$needed is not on the PATH." >&2; exit 1; }
done

# PostgreSQL refuses to run as root. If this script runs as root, PostgreSQL runs as nobody.
as_nobody=()
install -d "$folder/postgres"
if [ "$(id -u)" = 0 ]; then
  as_nobody=(setpriv --reuid=nobody --regid=nogroup --clear-groups --)
  chmod 711 "$folder"
  chown nobody:nogroup "$folder/postgres"
fi

started=()
finish() {
  trap - EXIT INT TERM
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill "${started[i]}" 2>/dev/null || true
    wait "${started[i]}" 2>/dev/null || true
  done
  (cd "$folder/postgres" && "${as_nobody[@]}" pg_ctl stop --pgdata data --mode fast --silent) || true
  [ $# = 0 ] || rm -rf "$folder"
}
if [ $# = 0 ]; then trap 'finish remove' EXIT; else trap finish EXIT; fi
trap 'exit 0' INT TERM

# start NAME COMMAND...: runs a command in the background, with output in FOLDER/NAME.out and its log in FOLDER/NAME.log.
start() {
  local name=$1
  shift
  "$@" >"$folder/$name.out" 2>"$folder/$name.log" &
  started+=($!)
}

# until_ok COMMAND...: repeats a command until it succeeds, for at most a minute.
until_ok() {
  for _ in $(seq 600); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "This did not succeed within a minute: $*. The logs are in $folder." >&2
  exit 1
}

answers() { python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' "$1"; }

# 1. The databases.
cd "$folder/postgres"
[ -d data ] || "${as_nobody[@]}" initdb --pgdata data --username birdwire --auth trust >initdb.log 2>&1
"${as_nobody[@]}" pg_ctl start --pgdata data --wait --silent --log log \
  --options "-c listen_addresses=127.0.0.1 -c port=$postgres -c unix_socket_directories=''" >/dev/null
# The database may exist already.
createdb --host 127.0.0.1 --port "$postgres" --username birdwire birdwire 2>/dev/null || true
cd "$folder"
start redis redis-server --bind 127.0.0.1 --port "$redis" --save "" --appendonly no

# 2. A sandbox in place of X.
start sandbox birdwire sandbox --port "$x" --world "$folder/world.json" --json
member() { python3 -c 'import json, sys; print(json.loads(open("sandbox.out").readline())[sys.argv[1]])' "$1"; }
# The sandbox may have written only a part of the line so far.
until_ok member client_secret

# 3. The settings that both gateways share.
[ -f vault.key ] || birdwire vault create vault.key >/dev/null
export BIRDWIRE_DATABASE_URL=postgresql://birdwire@127.0.0.1:$postgres/birdwire
export BIRDWIRE_REDIS_URL=redis://127.0.0.1:$redis/0
export BIRDWIRE_VAULT_KEY_FILE=$folder/vault.key
export BIRDWIRE_PUBLIC_URL=http://127.0.0.1:$port
export BIRDWIRE_TRUSTED_PROXIES=127.0.0.1
export BIRDWIRE_X_API_URL=http://127.0.0.1:$x BIRDWIRE_X_AUTHORIZE_URL=http://127.0.0.1:$x/i/oauth2/authorize
BIRDWIRE_X_CLIENT_ID=$(member client_id) BIRDWIRE_X_CLIENT_SECRET=$(member client_secret)
export BIRDWIRE_X_CLIENT_ID BIRDWIRE_X_CLIENT_SECRET

# 4. The schema, created once; then any number of gateways; then haproxy.
birdwire migrate >/dev/null
start one birdwire serve --port "$one"
start two birdwire serve --port "$two"
FRONT_PLAIN=127.0.0.1:$port REPLICA_ONE=127.0.0.1:$one REPLICA_TWO=127.0.0.1:$two \
  start haproxy haproxy -db -f "$here/../../docs/fronts/haproxy.cfg"
for each in $one $two $port; do until_ok answers "http://127.0.0.1:$each/readyz"; done

# 5. A key.
key=$(birdwire keys create --label "two replicas" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["api_key"])')
cat <<END
Birdwire is running at http://127.0.0.1:$port, with replicas on ports $one and $two. Link an account and like a post:

export BIRDWIRE_URL=http://127.0.0.1:$port BIRDWIRE_API_KEY=$key
birdwire accounts link
birdwire like 1346889436626259968

Press Ctrl-C to stop everything.
END
wait -n "${started[@]}"
echo "A process exited unexpectedly. The logs are in $folder." >&2
trap - EXIT
finish
exit 1
