#!/bin/sh
# Makes what the local stack keeps secret, as files in secrets/, and leaves alone what is there. Needs the gateway's image.
#
#   sh deploy/secrets.sh                      all of it, with a first client of the issuer in secrets/shop.json
#   sh deploy/secrets.sh clients COMMAND …    what `scoregate clients` does (create, list, revoke), for the stack's issuer
set -eu
cd "$(dirname "$0")/.."
secrets=${SCOREGATE_SECRETS:-secrets}
image=scoregate:${SCOREGATE_TAG:-local}

if ! docker image inspect "$image" > /dev/null 2>&1; then
    echo "there is no image $image; build it first: docker compose build gateway trainer" >&2
    exit 1
fi

# Nobody else gets into the directory. The files in it are open, since containers read them as users of their own.
umask 022
if ! mkdir -p "$secrets/issuer" || ! chmod 700 "$secrets" || ! [ -w "$secrets/issuer" ]; then
    echo "$secrets belongs to somebody else, perhaps since the stack came up before it was there; remove it (sudo rm -r $secrets), and call this again" >&2
    exit 1
fi
secrets=$(cd "$secrets" && pwd)

# The issuer keeps a hash of a client's secret; its id and secret are printed, this once. Who was let in and out is recorded beside the
# clients. Whoever calls this may be nobody in the container: root may write there, and lets others read.
clients() {
    docker run --rm --user 0:0 --network none --read-only --tmpfs /tmp --volume "$secrets/issuer:/issuer" \
        --env SCOREGATE_OAUTH_CLIENTS_FILE=/issuer/clients.json --env SCOREGATE_STATE_DIR=/issuer --entrypoint sh \
        "$image" -euc 'scoregate clients "$@"; chmod -R a+rX /issuer' sh "$@"
}

random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

case ${1:-} in
clients)
    shift
    clients "$@"
    exit
    ;;
?*)
    echo "expected no argument or \`clients\`, found \`$1\`" >&2
    exit 2
    ;;
esac
for name in redis_password cache_key grafana_password; do
    [ -s "$secrets/$name" ] || random > "$secrets/$name"
done
printf 'requirepass %s\n' "$(cat "$secrets/redis_password")" > "$secrets/redis.conf"
[ -s "$secrets/shop.json" ] || clients create --name shop --scopes score:predict,models:read > "$secrets/shop.json"
